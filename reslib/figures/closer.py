"""The ends of a panel's test curves enlarged in the room above them."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import PathPatch
from matplotlib.ticker import MaxNLocator

from .style import GREY

CLOSER_FROM = 2 / 3  # of the training: what comes after is enlarged where test curves end close to each other
CLOSER_SPAN = 0.2  # of the panel's height: where the ends lie further apart nothing need be enlarged
CLOSER_PLACE = (0.56, 0.5)  # where it stands in the panel: left edge, and what must be free above the curves


def closer_look(ax: Axes) -> None:
    """The ends of the test curves enlarged, where they lie together and there is room for it above them.

    Without it the lines of the paper's errors, which are nearly ours, could not be told from the curves.
    """
    curves = [line for line in ax.lines if str(line.get_label()).endswith(" test_error")]
    quoted = [line for line in ax.lines if line.get_label() == "_paper"]
    bands = [band for band in ax.collections if band.get_label() == "_band test_error"]
    end, top = max(line.get_xdata()[-1] for line in curves), ax.get_ylim()[1]
    points = [line.get_xydata() for line in curves] + [p.vertices for band in bands for p in band.get_paths()]
    late = np.concatenate([p[p[:, 0] >= CLOSER_FROM * end, 1] for p in points])
    below = np.concatenate([p[p[:, 0] >= CLOSER_PLACE[0] * end, 1] for p in points])
    if np.ptp(late) > CLOSER_SPAN * top or below.max() > CLOSER_PLACE[1] * top:
        return
    left, bottom = CLOSER_PLACE[0], CLOSER_PLACE[1] + 0.06  # the ticks of its x axis are below it, its title above
    inset = ax.inset_axes([left, bottom, 0.98 - left, 0.93 - bottom])
    for line in (*curves, *quoted):
        x = line.get_xdata() if line in curves else (CLOSER_FROM * end, end)
        look = {"color": line.get_color(), "linestyle": line.get_linestyle(), "zorder": 4 if line in quoted else 3}
        inset.plot(x, line.get_ydata(), linewidth=1.2, label=f"_closer {line.get_label()}", **look)
    for band in bands:
        look = {"facecolor": band.get_facecolor()[0], "linewidth": 0, "zorder": 2}
        for path in band.get_paths():
            inset.add_patch(PathPatch(path, **look))
    levels = np.append(late, [line.get_ydata()[0] for line in quoted])
    inset.set(xlim=(CLOSER_FROM * end, end), ylim=(levels.min() - 0.2, levels.max() + 0.1))
    inset.tick_params(labelsize=7, length=2)
    inset.yaxis.tick_right()  # on the left are the curves at high rates
    inset.xaxis.set_major_locator(MaxNLocator(nbins=4))
    inset.set_title("last third, enlarged", fontsize=7, pad=2, color=GREY)

"""What a failing command says."""


def one_line(capsys) -> str:
    out, err = capsys.readouterr()
    assert err.count("\n") == 1 and err.startswith("reslib: "), err
    return err.strip()

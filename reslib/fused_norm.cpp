// Batch norm in training, the addition of a shortcut and ReLU in one go, as functions of C: built by native.py, called by
// fused_norm.py. The loops are norm_loops.h's.

#include "norm_loops.h"

extern "C" {

int norm_width() { return Eight::W; }

long norm_work(int c) { return work_of(c); }

// Both: maps of type 0 (fp32) or 1 (bf16); per channel fp32; `work` has room for norm_work(c) doubles.

// y = max(0, norm(x) + added), added may be null. Moving averages are updated, with the unbiased variance. channels
// (4, c), for the way back: mean, standard deviation (of the biased variance and epsilon), scale and bias.
void norm_forward(int type, const void *x, const void *added, void *y, long pixels, int c, const float *weight,
                  const float *bias, float *running_mean, float *running_variance, double momentum, double epsilon,
                  float *channels, double *work, int threads)
{
    by_width(c, [=](auto loops) {
        const auto run = [=](auto *y) {
            typedef decltype(y) map;
            loops.forward((map)x, (map)added, y, pixels, c, weight, bias, running_mean, running_variance, momentum,
                          epsilon, channels, work, threads);
        };
        type ? run((bf16 *)y) : run((float *)y);
    });
}

// Gradients of x, weight, bias and what was added, from the slopes of y. y and of_added: null where nothing was added.
void norm_backward(int type, const void *slopes, const void *x, const void *y, void *of_x, void *of_added, long pixels,
                   int c, float *channels, float *of_weight, float *of_bias, double *work, int threads)
{
    by_width(c, [=](auto loops) {
        const auto run = [=](auto *of_x) {
            typedef decltype(of_x) map;
            loops.backward((map)slopes, (map)x, (map)y, of_x, (map)of_added, pixels, c, channels, of_weight, of_bias,
                           work, threads);
        };
        type ? run((bf16 *)of_x) : run((float *)of_x);
    });
}

}

// The arithmetic of one channel and ghost batch: from sums to what tensors are normalized with. All in double, one
// thread per channel, wherever the sums come from: a block that has just taken them, or a message.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "cuda/arguments.h"

namespace bnpass::cuda {

__device__ inline double read(Vector from, int64_t i) {
  return from.element == Element::f64 ? static_cast<const double*>(from.data)[i]
                                      : static_cast<double>(static_cast<const float*>(from.data)[i]);
}
__device__ inline void write(Output to, int64_t i, double value) {
  if (to.data == nullptr) return;
  if (to.element == Element::f64) {
    static_cast<double*>(to.data)[i] = value;
  } else {
    static_cast<float*>(to.data)[i] = static_cast<float>(value);
  }
}
__device__ inline void write(double* to, int64_t i, double value) {
  if (to != nullptr) to[i] = value;
}

/// Writes the running statistics of channel c; mean and var: averages over the ghost batches; count: 0 keeps what was.
__device__ inline void update(const Running& running, int64_t c, double mean, double var, double count) {
  if (running.mean_after.data == nullptr && running.var_after.data == nullptr) return;
  const double mean_before = read(running.mean_before, c), var_before = read(running.var_before, c);
  const double kept = running.momentum, taken = 1.0 - kept;
  const double rest = count - running.correction;
  const double unbiased = count / (rest > 1.0 ? rest : 1.0);
  write(running.mean_after, c, count == 0 ? mean_before : kept * mean_before + taken * mean);
  write(running.var_after, c, count == 0 ? var_before : kept * var_before + taken * unbiased * var);
}

/// Writes everything that follows from the mean and the variance of `count` elements; 0 elements: constants.
__device__ inline void finish(const Statistics& to, int64_t group, int64_t c, double mean, double var, double count) {
  const int64_t i = group * to.channels + c;
  write(to.mean, i, mean);
  write(to.var, i, var);
  const double inv_std = 1.0 / sqrt(var + to.epsilon);
  write(to.inv_std, i, inv_std);
  if (to.factor != nullptr) to.factor[i] = read(to.scale, c) * inv_std;
  if (to.groups == 1) update(to.running, c, mean, var, count);
  if (i == 0) write(to.count, 0, count);
}

__device__ inline void finish(const Gradient& to, int64_t group, int64_t c, double sum_dY, double sum_dYX) {
  const int64_t i = group * to.channels + c;
  write(to.sum_dY, i, sum_dY);
  write(to.sum_dYX, i, sum_dYX);
  if (to.inv_std == nullptr) return;
  const double inv_std = to.inv_std[i];
  if (to.factor != nullptr) to.factor[i] = read(to.scale, c) * inv_std;
  if (to.shift != nullptr) to.shift[i] = sum_dY / *to.count;
  if (to.slope != nullptr) to.slope[i] = inv_std * inv_std * sum_dYX / *to.count;
  if (to.groups == 1) {
    write(to.dscale, c, inv_std * sum_dYX);
    write(to.dB, c, sum_dY);
  }
}

}  // namespace bnpass::cuda

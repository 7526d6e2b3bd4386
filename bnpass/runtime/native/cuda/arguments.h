// What kernels are told besides the tensors: plain data, known to host code without CUDA.
#pragma once

#include <cstdint>

#include "core/element.h"

namespace bnpass::cuda {

/// Two sums of a channel and ghost batch.
struct Pair {
  double a, b;
};

/// Where blocks leave their sums, [splits, groups, channels], and count themselves, [groups, tiles], all 0.
struct Partials {
  Pair* pairs = nullptr;
  unsigned* counters = nullptr;
};

/// A vector of float or double on the device; data null: there is none.
struct Vector {
  const void* data = nullptr;
  Element element = Element::f64;
};
struct Output {
  void* data = nullptr;
  Element element = Element::f64;
};

/// The running statistics of a layer.
struct Running {
  Vector mean_before, var_before;
  Output mean_after, var_after;
  double momentum = 0;
  double correction = 0;  ///< 0 or 1, as NumPy's ddof.
};

/// What becomes of the statistics of a batch. Vectors [groups, channels]; those that are null are not written.
struct Statistics {
  int64_t channels = 1, groups = 1;
  double epsilon = 0;
  Vector scale;  ///< [channels]; needed for factor.
  double* mean = nullptr;
  double* square_sum = nullptr;
  double* var = nullptr;
  double* inv_std = nullptr;
  double* factor = nullptr;  ///< scale·inv_std.
  double* count = nullptr;   ///< A scalar.
  Running running;           ///< Written here if there is one ghost batch.
};

/// What becomes of the sums of a gradient. Vectors [groups, channels]; those that are null are not written.
struct Gradient {
  int64_t channels = 1, groups = 1;
  Vector scale;                     ///< [channels]; needed for factor.
  const double* inv_std = nullptr;  ///< Needed for all but the sums.
  const double* count = nullptr;    ///< A scalar, M; needed for shift and slope.
  double* sum_dY = nullptr;
  double* sum_dYX = nullptr;
  double* factor = nullptr;  ///< scale·inv_std.
  double* shift = nullptr;   ///< S1/M.
  double* slope = nullptr;   ///< inv_std²·S2/M.
  Output dscale, dB;         ///< [channels]; written here if there is one ghost batch.
};

}  // namespace bnpass::cuda

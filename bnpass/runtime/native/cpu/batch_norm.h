// Batch normalization on plain host memory. Vectors per channel are double; values are of any floating-point element.
//
//   mean = Σ x / count      square_sum = Σ (x − mean)²        sums over a channel and ghost batch of this replica
//   Y    = factor·(X − mean) + B                              factor = scale / √(var + epsilon), [groups, channels]
//   dX   = factor·(dY − shift − slope·(X − mean))             shift = S1/M, slope = inv_std²·S2/M, [groups, channels]
//
// All arithmetic is in double; a result is rounded to its element once. Results do not depend on the number of threads.
// A NaN or an infinity reaches its own channel and ghost batch alone. Nothing here throws but std::bad_alloc.
#pragma once

#include "core/element.h"
#include "core/geometry.h"
#include "core/parallel.h"

namespace bnpass::cpu {

/// Writes mean and square_sum, [groups, channels]; both 0 where there are no elements.
void moments(Parallel& parallel, const Geometry& geometry, Element element, const void* X, double* mean,
             double* square_sum);

/// Writes Y = factor·(X − mean) + B. mean, factor: [groups, channels]; B: [channels]. Y may be X.
void normalize(Parallel& parallel, const Geometry& geometry, Element element, const void* X, const double* mean,
               const double* factor, const double* B, void* Y);

/// Training forward of one replica alone: writes mean, var (population) and inv_std, [groups, channels], and Y.
/// A block of channels that fits in the cache is read from memory once. geometry.count() must not be 0.
void forward(Parallel& parallel, const Geometry& geometry, Element element, const void* X, const double* scale,
             const double* B, double epsilon, double* mean, double* var, double* inv_std, void* Y);

/// Writes sum_dY = Σ dY and sum_dYX = Σ dY·(X − mean), [groups, channels].
void gradient_sums(Parallel& parallel, const Geometry& geometry, Element element, const void* dY, const void* X,
                   const double* mean, double* sum_dY, double* sum_dYX);

/// Writes dX = factor·(dY − shift − slope·(X − mean)); all vectors [groups, channels]. dX may be dY or X.
/// With shift and slope null dX = factor·dY, and X is not looked at.
void gradient_apply(Parallel& parallel, const Geometry& geometry, Element element, const void* dY, const void* X,
                    const double* mean, const double* factor, const double* shift, const double* slope, void* dX);

/// Backward of one replica alone, with statistics of count elements (count > 0; it need not be geometry.count()):
/// sum_dY and sum_dYX as above, and dX. scale: [channels]; inv_std: [groups, channels].
void backward(Parallel& parallel, const Geometry& geometry, Element element, const void* dY, const void* X,
              const double* scale, const double* mean, const double* inv_std, double count, double* sum_dY,
              double* sum_dYX, void* dX);

/// Elements of any floating-point type to double, and from double, rounded once to nearest even.
void to_double(Element element, const void* from, double* to, size_t count);
void from_double(Element element, const double* from, void* to, size_t count);

/// Returns the instruction set that runs here: "avx512-pairs", "avx512", "avx2", "baseline".
const char* instructions();

}  // namespace bnpass::cpu

// One sweep over a tile: sums of its channels, or new values for its elements.
//
// Vectors are those of the tile, its first channel first. Sweeps that write go through the rows from the last to the
// first, so that they meet first what the sweep before left in the cache.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cpu/cut.h"
#include "cpu/kernels.h"

namespace bnpass::cpu {

struct Sweep {
  const Cut& cut;
  const Kernels& kernels;
  size_t bytes;  ///< Of an element.
  bool stream = false;

  /// Writes Σ (x − shift) and Σ (x − shift)².
  void sums(const Tile& tile, const void* X, const double* shift, double* sum, double* square) const;
  /// Writes Σ dy and Σ dy·(x − mean).
  void gradient_sums(const Tile& tile, const void* dY, const void* X, const double* mean, double* sum_dY,
                     double* sum_dYX) const;
  /// Writes factor·(x − mean) + B.
  void normalize(const Tile& tile, const void* X, const double* mean, const double* factor, const double* B,
                 void* Y) const;
  /// Writes factor·(dy − shift − slope·(x − mean)).
  void gradient(const Tile& tile, const void* dY, const void* X, const double* mean, const double* factor,
                const double* shift, const double* slope, void* dX) const;

  const void* at(const void* values, size_t element) const {
    return static_cast<const char*>(values) + element * bytes;
  }
  void* at(void* values, size_t element) const { return static_cast<char*>(values) + element * bytes; }
  /// Elements between the last address where lanes are aligned and this one.
  size_t behind_aligned(const void* value) const { return reinterpret_cast<uintptr_t>(value) / bytes % lanes; }
};

}  // namespace bnpass::cpu

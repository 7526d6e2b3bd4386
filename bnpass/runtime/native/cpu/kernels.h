// The inner loops of batch normalization: one table of them per element type and instruction set.
//
// A run is n elements of one channel, one behind the other; runs of neighbouring channels follow at a stride, and if they
// do so without gaps, n is at least lanes. Their sums are kept in lanes, 2·lanes doubles per channel: Σ a in the first
// half, Σ b in the second.
// A row is n columns, which have a shift, a factor and sums each; rows follow at a pitch. Vectors over the columns are
// readable (and sums writable) up to a multiple of lanes; those of normalize and gradient begin anew behind n.
// stream: write past the caches; call fence before another thread may look.
#pragma once

#include <cstddef>

#include "core/element.h"

namespace bnpass::cpu {

/// Doubles that are worked on at once, by every instruction set.
constexpr size_t lanes = 8;

/// Most columns of a tile, and with that the length of its vectors.
constexpr size_t max_columns = 512;

struct Kernels {
  /// a = x − shift, b = (x − shift)², added to sums, or to nothing.
  void (*run_sums)(const void* X, size_t channels, size_t stride, size_t n, const double* shift, double* sums,
                   bool anew);
  /// a = dy, b = dy·(x − mean), added to sums, or to nothing.
  void (*run_gradient_sums)(const void* dY, const void* X, size_t channels, size_t stride, size_t n, const double* mean,
                            double* sums, bool anew);
  /// The sums of all lanes, [channels] each.
  void (*run_totals)(const double* sums, size_t channels, double* a, double* b);
  /// y = factor·(x − mean) + B.
  void (*run_normalize)(const void* X, size_t channels, size_t stride, size_t n, const double* mean,
                        const double* factor, const double* B, void* Y, bool stream);
  /// dx = factor·(dy − shift − slope·(x − mean)).
  void (*run_gradient)(const void* dY, const void* X, size_t channels, size_t stride, size_t n, const double* mean,
                       const double* factor, const double* shift, const double* slope, void* dX, bool stream);

  /// The same over rows.
  void (*row_sums)(const void* X, size_t rows, size_t pitch, size_t n, const double* shift, double* sum,
                   double* square);
  void (*row_gradient_sums)(const void* dY, const void* X, size_t rows, size_t pitch, size_t n, const double* mean,
                            double* sum_dY, double* sum_dYX);
  void (*row_normalize)(const void* X, size_t rows, size_t pitch, size_t n, const double* mean, const double* factor,
                        const double* B, void* Y, bool stream);
  void (*row_gradient)(const void* dY, const void* X, size_t rows, size_t pitch, size_t n, const double* mean,
                       const double* factor, const double* shift, const double* slope, void* dX, bool stream);

  void (*to_double)(const void* from, double* to, size_t n);
  void (*from_double)(const double* from, void* to, size_t n);
  void (*fence)();
};

/// The tables of one instruction set.
struct InstructionSet {
  const char* name;
  Kernels f16, bf16, f32, f64;

  const Kernels& of(Element element) const {
    switch (element) {
      case Element::f16:
        return f16;
      case Element::bf16:
        return bf16;
      case Element::f64:
        return f64;
      default:
        return f32;
    }
  }
};

/// Returns the instruction set in use: the best one of this processor, or a lesser one that the environment variable
/// BNPASS_INSTRUCTIONS names.
const InstructionSet& instruction_set();

/// Takes another instruction set from now on (for tests); false if this processor does not have it.
bool use_instructions(const char* name);

}  // namespace bnpass::cpu

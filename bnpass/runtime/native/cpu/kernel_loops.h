// The tables of kernels.h for an instruction set.
// Included once per instruction set, where the compiler's target is set; so everything in here is local to its file.
#pragma once

#include "cpu/loop_parts.h"
// Behind the parts.
#include "cpu/row_loops.h"
#include "cpu/run_loops.h"

namespace bnpass::cpu {
namespace {

template <class L, class T>
struct Conversions : LoopParts<L, T> {
  using LoopParts<L, T>::elements;

  static void to_double(const void* from, double* to, size_t n) {
    size_t j = 0;
    for (; j + lanes <= n; j += lanes) L::store(to + j, L::load(elements(from) + j));
    if (j < n) L::store(to + j, L::load(elements(from) + j, n - j), n - j);
  }

  static void from_double(const double* from, void* to, size_t n) {
    size_t j = 0;
    for (; j + lanes <= n; j += lanes) L::store(static_cast<T*>(to) + j, L::load(from + j));
    if (j < n) L::store(static_cast<T*>(to) + j, L::load(from + j, n - j), n - j);
  }
};

/// The tables of an instruction set. Lanes for runs may be other ones than those for rows: the sums are the same.
template <class Runs, class Rows, class T>
constexpr Kernels kernels_of() {
  using OfRuns = RunLoops<Runs, T>;
  using OfRows = RowLoops<Rows, T>;
  using Of = Conversions<Rows, T>;
  return {OfRuns::run_sums,      OfRuns::run_gradient_sums, OfRuns::run_totals,        OfRuns::run_normalize,
          OfRuns::run_gradient,  OfRows::row_sums,          OfRows::row_gradient_sums, OfRows::row_normalize,
          OfRows::row_gradient,  Of::to_double,             Of::from_double,           Rows::fence};
}

template <class Runs, class Rows = Runs>
constexpr InstructionSet instructions_of(const char* name) {
  return {name, kernels_of<Runs, Rows, Half>(), kernels_of<Runs, Rows, BFloat16>(), kernels_of<Runs, Rows, float>(),
          kernels_of<Runs, Rows, double>()};
}

}  // namespace
}  // namespace bnpass::cpu

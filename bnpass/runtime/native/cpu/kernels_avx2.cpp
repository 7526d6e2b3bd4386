// The kernels for AVX2, FMA and F16C.
#if defined(__x86_64__)

// Everything that others may share is included before the target is set, so that none of it is compiled for it.
#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "cpu/instruction_sets.h"
#include "cpu/rounding.h"

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#endif

#include "cpu/lanes_avx2.h"
// Behind the lanes.
#include "cpu/kernel_loops.h"

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

namespace bnpass::cpu {

const InstructionSet& avx2_instructions() {
  static constexpr InstructionSet set = instructions_of<Avx2>("avx2");
  return set;
}

}  // namespace bnpass::cpu

#endif

// The instruction sets that the kernels are compiled for.
#pragma once

#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include "cpu/kernels.h"

namespace bnpass::cpu {

/// What every processor of the architecture has: SSE2 on x86-64, NEON on 64-bit ARM.
const InstructionSet& baseline_instructions();

#if defined(__x86_64__)
const InstructionSet& avx2_instructions();
const InstructionSet& avx512_instructions();
/// The same with runs in registers of half the length.
const InstructionSet& avx512_pairs_instructions();

inline bool has_avx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
}

inline bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}

/// Whether the units behind AVX-512 are half as long as its registers (AMD's family 25, Zen 4). There runs in pairs of
/// registers take 2/3 of the time, for additions and conversions then overlap with multiplications; rows, which load more,
/// take longer.
inline bool halves_avx512() {
  unsigned signature = 0, ebx = 0, ecx = 0, edx = 0;
  if (!__builtin_cpu_is("amd") || __get_cpuid(1, &signature, &ebx, &ecx, &edx) == 0) return false;
  return (signature >> 8 & 15) + (signature >> 20 & 255) == 25;
}
#endif

}  // namespace bnpass::cpu

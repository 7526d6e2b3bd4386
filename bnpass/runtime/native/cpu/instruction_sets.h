// The instruction sets that the kernels are compiled for.
#pragma once

#include "cpu/kernels.h"

namespace bnpass::cpu {

/// What every processor of the architecture has: SSE2 on x86-64, NEON on 64-bit ARM.
const InstructionSet& baseline_instructions();

#if defined(__x86_64__)
const InstructionSet& avx2_instructions();
const InstructionSet& avx512_instructions();

inline bool has_avx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
}

inline bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}
#endif

}  // namespace bnpass::cpu

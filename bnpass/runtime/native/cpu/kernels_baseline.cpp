// The kernels in plain code.
#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "cpu/instruction_sets.h"
#include "cpu/lanes_baseline.h"
// Behind the lanes.
#include "cpu/kernel_loops.h"

namespace bnpass::cpu {

const InstructionSet& baseline_instructions() {
  static constexpr InstructionSet set = instructions_of<Baseline>("baseline");
  return set;
}

}  // namespace bnpass::cpu

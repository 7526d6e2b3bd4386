// The choice of the instruction set, once per process.
#include <atomic>
#include <cstdlib>
#include <cstring>

#include "cpu/batch_norm.h"
#include "cpu/instruction_sets.h"
#include "cpu/kernels.h"

namespace bnpass::cpu {
namespace {

/// The instruction set of that name, if this processor has it.
const InstructionSet* find(const char* name) {
#if defined(__x86_64__)
  if (std::strcmp(name, "avx512-pairs") == 0 && has_avx512()) return &avx512_pairs_instructions();
  if (std::strcmp(name, "avx512") == 0 && has_avx512()) return &avx512_instructions();
  if (std::strcmp(name, "avx2") == 0 && has_avx2()) return &avx2_instructions();
#endif
  return std::strcmp(name, "baseline") == 0 ? &baseline_instructions() : nullptr;
}

const InstructionSet* choose() {
  const char* wanted = std::getenv("BNPASS_INSTRUCTIONS");
  for (const char* name : {wanted, halves_avx512() ? "avx512-pairs" : "avx512", "avx2"}) {
    const InstructionSet* found = name == nullptr ? nullptr : find(name);
    if (found != nullptr) return found;
  }
  return &baseline_instructions();
}

std::atomic<const InstructionSet*>& chosen() {
  static std::atomic<const InstructionSet*> set{choose()};
  return set;
}

}  // namespace

const InstructionSet& instruction_set() { return *chosen().load(std::memory_order_acquire); }

bool use_instructions(const char* name) {
  const InstructionSet* found = find(name);
  if (found != nullptr) chosen().store(found, std::memory_order_release);
  return found != nullptr;
}

const char* instructions() { return instruction_set().name; }

}  // namespace bnpass::cpu

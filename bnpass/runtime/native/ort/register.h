// The operators as a domain of ONNX Runtime.
#pragma once

#include <vector>

#include "ort/operators.h"

namespace bnpass::ort {

/// What a library adds to the operators of the CPU: the CUDA library fills this while it is loaded.
struct Provider {
  const char* name;
  std::vector<Signature> (*signatures)();
};

/// The providers besides the CPU.
std::vector<Provider>& more_providers();

}  // namespace bnpass::ort

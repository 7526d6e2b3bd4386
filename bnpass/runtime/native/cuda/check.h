// Errors of the CUDA runtime as exceptions.
#pragma once

#include <cuda_runtime_api.h>

#include <string>

#include "core/error.h"

namespace bnpass::cuda {

/// Throws Error, naming what failed and CUDA's reason, unless the result is cudaSuccess.
inline void check(cudaError_t result, const char* what) {
  if (result == cudaSuccess) return;
  throw Error(std::string("CUDA: ") + what + ": " + cudaGetErrorString(result), Code::runtime);
}

}  // namespace bnpass::cuda

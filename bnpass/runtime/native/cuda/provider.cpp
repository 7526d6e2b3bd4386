// Adds the operators on the GPU to those of the CPU, while the library is loaded.
#include <vector>

#include "cuda/operators.h"
#include "ort/register.h"

namespace bnpass::cuda {
namespace {

constexpr const char* kProvider = "CUDAExecutionProvider";

std::vector<ort::Signature> signatures() {
  std::vector<ort::Signature> all;
  for (ort::Signature& signature : ort::cpu_signatures()) all.push_back(on_gpu(std::move(signature)));
  return all;
}

const bool added = [] {
  ort::more_providers().push_back({kProvider, signatures});
  return true;
}();

}  // namespace
}  // namespace bnpass::cuda

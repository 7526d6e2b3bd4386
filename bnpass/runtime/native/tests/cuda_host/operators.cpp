// Gives the kernels for the GPU to ONNX Runtime's CPU provider, in place of those for the CPU: so sessions without a
// GPU run the host code of cuda/ as well.
#define cpu_signatures signatures_of_the_cpu  // a test's way to take a list over
#include "ort/operators.cpp"
#undef cpu_signatures

#include "cuda/operators.h"

namespace bnpass::ort {

std::vector<Signature> cpu_signatures();

std::vector<Signature> cpu_signatures() {
  std::vector<Signature> all;
  for (Signature& signature : signatures_of_the_cpu()) all.push_back(cuda::on_gpu(std::move(signature)));
  return all;
}

}  // namespace bnpass::ort

// What this library is, for people who report a problem.
#include <string>

#include "cpu/batch_norm.h"
#include "ort/register.h"

/// Returns "bnpass 0.1.0, GCC 12.2.0, avx512, ONNX Runtime from 1.18 on, providers: CPU".
extern "C" __attribute__((visibility("default"))) const char* bnpass_build_info() {
  static const auto& text = *new std::string([] {
    std::string said = std::string("bnpass ") + BNPASS_VERSION + ", compiler " + __VERSION__ + ", " +
                       bnpass::cpu::instructions() + ", ONNX Runtime from 1." +
                       std::to_string(bnpass::ort::api_version) + " on, providers: CPU";
    for (const bnpass::ort::Provider& provider : bnpass::ort::more_providers()) said += std::string(", ") + provider.name;
    return said;
  }());
  return text.c_str();
}

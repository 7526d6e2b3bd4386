// Element types, by their ONNX numbers, and the two half-precision formats as values.
#pragma once

#include <cstddef>
#include <cstdint>

namespace bnpass {

enum class Element : int32_t { f32 = 1, i64 = 7, f16 = 10, f64 = 11, bf16 = 16 };

constexpr size_t size_of(Element element) {
  switch (element) {
    case Element::f16:
    case Element::bf16:
      return 2;
    case Element::f32:
      return 4;
    case Element::f64:
    case Element::i64:
      return 8;
  }
  return 0;
}

constexpr const char* name_of(Element element) {
  switch (element) {
    case Element::f16:
      return "tensor(float16)";
    case Element::bf16:
      return "tensor(bfloat16)";
    case Element::f32:
      return "tensor(float)";
    case Element::f64:
      return "tensor(double)";
    case Element::i64:
      return "tensor(int64)";
  }
  return "tensor(?)";
}

/// IEEE 754 binary16, as its bits.
struct Half {
  uint16_t bits;
};

/// The upper half of a float, as its bits.
struct BFloat16 {
  uint16_t bits;
};

}  // namespace bnpass

#include "collective/all_reduce.h"

#include <algorithm>
#include <cstring>
#include <memory>
#include <new>

#include "collective/ordered_key.h"
#include "cpu/batch_norm.h"

namespace bnpass::collective {
namespace {

constexpr size_t kBlock = 1024;  // elements converted at once, on the stack

/// Calls body(first, count) for blocks that cover [0, length).
template <class F>
void blocks(size_t length, const F& body) {
  for (size_t first = 0; first < length; first += kBlock) body(first, std::min(kBlock, length - first));
}

/// Writes wire[i] = convert(X[i] as double).
template <class T, class F>
void from_elements(Element element, const void* X, size_t length, T* wire, const F& convert) {
  blocks(length, [&](size_t first, size_t count) {
    double values[kBlock];
    cpu::to_double(element, static_cast<const char*>(X) + first * size_of(element), values, count);
    for (size_t i = 0; i < count; ++i) wire[first + i] = convert(values[i]);
  });
}

/// Writes Y[i] = convert(wire[i]), rounded once.
template <class T, class F>
void to_elements(Element element, const T* wire, void* Y, size_t length, const F& convert) {
  blocks(length, [&](size_t first, size_t count) {
    double values[kBlock];
    for (size_t i = 0; i < count; ++i) values[i] = convert(wire[first + i]);
    cpu::from_double(element, values, static_cast<char*>(Y) + first * size_of(element), count);
  });
}

/// Returns room for a message; where there is none, all replicas get to know.
template <class T>
std::unique_ptr<T[]> room(Group& group, const Call& call) {
  std::unique_ptr<T[]> wire(new (std::nothrow) T[call.length]);
  if (!wire) group.fail(call, "there is no memory for " + std::to_string(call.length) + " elements");
  return wire;
}

bool is_half(Element element) { return element == Element::f16 || element == Element::bf16; }

void copy(Element element, const void* X, void* Y, size_t length) {
  if (X != Y && length > 0) std::memcpy(Y, X, length * size_of(element));
}

template <class T>
void divide(void* Y, size_t length, int size) {
  auto* values = static_cast<T*>(Y);
  for (size_t i = 0; i < length; ++i) values[i] /= static_cast<T>(size);
}

void sum_as_is(Group& group, Call& call, Element element, bool mean, const void* X, void* Y) {
  call.wire = element == Element::f32 ? Wire::f32 : element == Element::f64 ? Wire::f64 : Wire::i64;
  copy(element, X, Y, call.length);
  group.all_reduce(call, Y);
  if (mean && element == Element::f32) divide<float>(Y, call.length, group.size());
  if (mean && element == Element::f64) divide<double>(Y, call.length, group.size());
}

void sum_as_float(Group& group, Call& call, Element element, bool mean, const void* X, void* Y) {
  call.wire = Wire::f32;
  const auto wire = room<float>(group, call);
  from_elements(element, X, call.length, wire.get(), [](double value) { return static_cast<float>(value); });
  group.all_reduce(call, wire.get());
  const double count = mean ? group.size() : 1;
  to_elements(element, wire.get(), Y, call.length, [count](float sum) { return sum / count; });
}

void extremum_as_key(Group& group, Call& call, Element element, const void* X, void* Y) {
  const int64_t nan_key = call.reduction == Reduction::max ? INT64_MAX : INT64_MIN;
  call.wire = Wire::i64;
  const auto wire = room<int64_t>(group, call);
  from_elements(element, X, call.length, wire.get(), [nan_key](double value) { return key_of(value, nan_key); });
  group.all_reduce(call, wire.get());
  to_elements(element, wire.get(), Y, call.length, [nan_key](int64_t key) { return value_of(key, nan_key); });
}

}  // namespace

void all_reduce(Group& group, Call call, Element element, const std::string& reduction, const void* X, void* Y,
                size_t length) {
  const bool mean = reduction == "mean";
  call.length = length;
  call.reduction = reduction == "max" ? Reduction::max : reduction == "min" ? Reduction::min : Reduction::sum;
  if (!mean && reduction != "sum" && reduction != "max" && reduction != "min") {
    group.fail(call, "there is no reduction '" + reduction + "'; there are 'sum', 'mean', 'max' and 'min'");
  }
  if (mean && element == Element::i64) group.fail(call, "the mean of tensor(int64) is not defined");
  if (group.size() == 1) return copy(element, X, Y, length);
  if (call.reduction != Reduction::sum && element != Element::i64) {
    return extremum_as_key(group, call, element, X, Y);
  }
  if (is_half(element)) return sum_as_float(group, call, element, mean, X, Y);
  sum_as_is(group, call, element, mean, X, Y);
}

}  // namespace bnpass::collective

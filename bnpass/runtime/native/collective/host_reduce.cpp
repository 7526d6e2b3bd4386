#include "collective/host_reduce.h"

#include <cstddef>
#include <cstring>
#include <limits>
#include <type_traits>

#include "collective/header.h"

namespace bnpass::collective {
namespace {

template <class T>
T sum_of(T a, T b) {
  if constexpr (std::is_integral_v<T>) {
    return static_cast<T>(static_cast<uint64_t>(a) + static_cast<uint64_t>(b));
  } else {
    return a + b;
  }
}

template <class T>
void reduce_as(Reduction reduction, size_t length, T* into, const T* other) {
  switch (reduction) {
    case Reduction::sum:
      for (size_t i = 0; i < length; ++i) into[i] = sum_of(into[i], other[i]);
      return;
    case Reduction::max:
      for (size_t i = 0; i < length; ++i) into[i] = other[i] > into[i] ? other[i] : into[i];
      return;
    case Reduction::min:
      for (size_t i = 0; i < length; ++i) into[i] = other[i] < into[i] ? other[i] : into[i];
      return;
  }
}

template <class T>
void copy_as(size_t length, const T* from, T* to) {
  for (size_t i = 0; i < length; ++i) to[i] = from[i] != from[i] ? std::numeric_limits<T>::quiet_NaN() : from[i];
}

}  // namespace

void host_reduce(const Call& call, void* into, const void* other) {
  switch (call.wire) {
    case Wire::f32:
      return reduce_as(call.reduction, call.length, static_cast<float*>(into), static_cast<const float*>(other));
    case Wire::f64:
      return reduce_as(call.reduction, call.length, static_cast<double*>(into), static_cast<const double*>(other));
    case Wire::i64:
      return reduce_as(call.reduction, call.length, static_cast<int64_t*>(into), static_cast<const int64_t*>(other));
  }
}

void copy_canonical(const Call& call, const void* from, void* to) {
  switch (call.wire) {
    case Wire::f32:
      return copy_as(call.length, static_cast<const float*>(from), static_cast<float*>(to));
    case Wire::f64:
      return copy_as(call.length, static_cast<const double*>(from), static_cast<double*>(to));
    case Wire::i64:
      std::memcpy(to, from, call.length * size_of(call.wire));
  }
}

}  // namespace bnpass::collective

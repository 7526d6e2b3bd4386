// Floats as integers of the same order, for maxima and minima: −inf < … < −0 < +0 < … < inf, and a NaN wins.
#pragma once

#include <cstdint>
#include <cstring>
#include <limits>

namespace bnpass::collective {

/// Returns the key of a double. nan_key: INT64_MAX if the largest key is looked for, INT64_MIN if the smallest is.
/// No number has either of them.
inline int64_t key_of(double value, int64_t nan_key) {
  int64_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  const int64_t key = bits < 0 ? bits ^ INT64_MAX : bits;  // the magnitude of a negative number counts downwards
  return value != value ? nan_key : key;
}

/// Returns the double of a key.
inline double value_of(int64_t key, int64_t nan_key) {
  const int64_t bits = key < 0 ? key ^ INT64_MAX : key;
  double value;
  std::memcpy(&value, &bits, sizeof value);
  return key == nan_key ? std::numeric_limits<double>::quiet_NaN() : value;
}

}  // namespace bnpass::collective

#include "ort/vectors.h"

#include <algorithm>
#include <cmath>
#include <string>

#include "core/error.h"
#include "cpu/batch_norm.h"

namespace bnpass::ort {

Vector vector_of(const Context& context, size_t input, const char* name, Element element,
                 const std::vector<Dims>& allowed) {
  const Dims found = context.dims(input);
  if (std::find(allowed.begin(), allowed.end(), found) == allowed.end()) {
    std::string expected;
    for (const Dims& dims : allowed) expected += (expected.empty() ? "" : " or ") + text_of(dims);
    throw Error(std::string(name) + " has the shape " + text_of(found) + ", expected " + expected);
  }
  size_t size = 1;
  for (const int64_t dim : found) size *= static_cast<size_t>(dim);
  Vector values(size);
  cpu::to_double(element, context.data(input), values.data(), size);
  return values;
}

double count_of(const Context& context, size_t input) {
  const double count = vector_of(context, input, "count", Element::f64, {Dims{}})[0];
  if (!(count >= 0) || std::isinf(count)) throw Error("count is " + std::to_string(count) + ", not a number of elements");
  return count;
}

Dims statistics_dims(const Geometry& geometry, int64_t virtual_batch_size) {
  const auto C = static_cast<int64_t>(geometry.channels);
  return virtual_batch_size > 0 ? Dims{static_cast<int64_t>(geometry.groups), C} : Dims{C};
}

Vector sum_over_groups(const Geometry& geometry, const Vector& statistics) {
  const size_t channels = geometry.channels;
  Vector sum(channels, 0.0);
  for (size_t first = 0; first < statistics.size(); first += channels) {
    for (size_t c = 0; c < channels; ++c) sum[c] += statistics[first + c];
  }
  return sum;
}

Vector for_each_group(const Geometry& geometry, Vector vector) {
  if (vector.size() == geometry.statistics()) return vector;
  Vector repeated;
  repeated.reserve(geometry.statistics());
  for (size_t g = 0; g < geometry.groups; ++g) repeated.insert(repeated.end(), vector.begin(), vector.end());
  return repeated;
}

void write(const Vector& from, Element element, void* to) {
  if (to != nullptr) cpu::from_double(element, from.data(), to, from.size());
}

}  // namespace bnpass::ort

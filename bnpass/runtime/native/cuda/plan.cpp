#include "cuda/plan.h"

#include <algorithm>
#include <string>

#include "core/error.h"

namespace bnpass::cuda {
namespace {

constexpr int64_t kSegmentBytes = 128;  // of a row of channels that a block reads: whole cache lines
constexpr int64_t kShortRow = 4;        // vectors: up to here neighbouring threads take neighbouring channels
constexpr int64_t kWarp = 32;
constexpr int64_t kGrid = 2147483647;

struct Shape {
  int64_t samples, groups, per, channels, inner;
};

int64_t at_least(int64_t x) { return std::max<int64_t>(x, 1); }

int64_t power_of_two_from(int64_t x) {
  int64_t power = 1;
  while (power < x) power *= 2;
  return power;
}

/// The same elements with as few axes as can be: without ghost batches everything before the channels is one axis, and
/// a single channel has everything behind its ghost batch in one piece.
Shape merged(const Geometry& geometry) {
  Shape s{static_cast<int64_t>(geometry.samples), static_cast<int64_t>(geometry.groups),
          static_cast<int64_t>(geometry.per), static_cast<int64_t>(geometry.channels),
          static_cast<int64_t>(geometry.inner)};
  if (s.groups == 1) {
    s.samples *= s.per;
    s.per = 1;
  }
  if (s.channels == 1) {
    s.inner *= s.per;
    s.per = 1;
    if (s.groups == 1) {
      s.inner *= s.samples;
      s.samples = 1;
    }
  }
  return s;
}

/// The longest vector that divides a row and whose alignment rows and addresses have.
int vector_for(int64_t row, Element element, uintptr_t addresses, bool across) {
  const auto size = static_cast<int64_t>(size_of(element));
  for (int64_t v = kVectorBytes / size; v > 1; v /= 2) {
    const bool built = v * size == kVectorBytes || (!across && v * size == kVectorBytes / 2 && size == 2);
    if (built && row % v == 0 && addresses % static_cast<uintptr_t>(v * size) == 0) return static_cast<int>(v);
  }
  return 1;
}

Walk walk_across(const Shape& s, int vector) {
  Walk walk;
  walk.vectors = s.samples * s.per;
  walk.length = s.groups == 1 ? walk.vectors : s.per;
  walk.column_stride = s.channels;
  walk.row_stride = s.groups * s.per * s.channels;
  walk.group_stride = s.per * s.channels;
  walk.slot_stride = vector;
  return walk;
}

Walk walk_along(const Shape& s, int vector) {
  const int64_t row = s.channels * s.inner;
  Walk walk;
  walk.length = s.inner / vector;
  walk.vectors = s.samples * s.per * walk.length;
  walk.column_stride = vector;
  walk.group_stride = s.per * row;
  walk.slot_stride = s.inner;
  walk.row_stride = s.per == 1 ? s.groups * row : row;
  if (s.per > 1) {
    walk.period = s.per;
    walk.jump = (s.groups - 1) * s.per * row;
  }
  return walk;
}

void choose_threads(Plan& p, const Shape& s, Element element) {
  const auto size = static_cast<int64_t>(size_of(element));
  int64_t slots = 1;
  if (p.across) {
    slots = std::min(power_of_two_from(s.channels / p.vector), kSegmentBytes / (p.vector * size));
    p.slots_first = true;
  } else if (p.walk.length <= kShortRow) {
    slots = std::min(power_of_two_from(s.channels), kWarp);
    p.slots_first = true;
  } else {
    int64_t positions = kThreads;
    while (positions > kWarp && p.walk.vectors < positions * kUnroll) positions /= 2;
    slots = std::min(kThreads / positions, power_of_two_from(s.channels));
  }
  p.slots = static_cast<int>(slots);
  p.positions = static_cast<int>(kThreads / slots);
  p.tiles = (s.channels + p.width() - 1) / p.width();
}

Plan plan_with(const Shape& s, Element element, uintptr_t addresses, int processors) {
  Plan p;
  p.across = s.inner == 1;
  p.groups = s.groups;
  p.channels = s.channels;
  p.vector = vector_for(p.across ? s.channels : s.inner, element, addresses, p.across);
  p.walk = p.across ? walk_across(s, p.vector) : walk_along(s, p.vector);
  choose_threads(p, s, element);
  const int64_t wanted = processors * kBlocksPerProcessor / at_least(p.tiles * p.groups);
  const int64_t worth = p.walk.vectors / (static_cast<int64_t>(p.positions) * kUnroll);
  p.splits = at_least(std::min({wanted, worth, kSplits}));
  if (p.blocks() > kGrid) {
    throw Error("X needs " + std::to_string(p.blocks()) + " blocks, more than a CUDA grid has");
  }
  return p;
}

}  // namespace

Plan plan(const Geometry& geometry, Element element, uintptr_t addresses, int processors) {
  return plan_with(merged(geometry), element, addresses, processors);
}

Needs needs(const Geometry& geometry, Element element, int processors) {
  Needs most;
  if (geometry.size() == 0) return most;
  for (uintptr_t alignment = size_of(element); alignment <= kVectorBytes; alignment *= 2) {
    const Plan p = plan(geometry, element, alignment, processors);
    most.counters = std::max(most.counters, p.counter_bytes());
    most.partials = std::max(most.partials, p.partial_bytes());
  }
  return most;
}

}  // namespace bnpass::cuda

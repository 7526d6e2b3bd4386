// Every element of a tensor belongs to exactly one thread of a plan, for many shapes; and the memory that a plan needs
// is what needs() says. Exits with 0 if all holds.
#include <cstdio>
#include <map>
#include <vector>

#include "core/error.h"
#include "cuda/plan.h"

namespace {

using namespace bnpass;
using cuda::Plan;
using cuda::Walk;

int failures = 0;

void require(bool held, const char* what, const Geometry& g, const char* element) {
  if (held) return;
  ++failures;
  std::printf("%s: samples %zu groups %zu per %zu channels %zu inner %zu %s\n", what, g.samples, g.groups, g.per,
              g.channels, g.inner, element);
}

/// The offset of a vector, as the formula in plan.h says it.
int64_t offset_of(const Walk& walk, int64_t n, int64_t group, int64_t slot) {
  const int64_t row = n / walk.length, column = n % walk.length;
  const int64_t jump = walk.jump == 0 ? 0 : row / walk.period * walk.jump;
  return group * walk.group_stride + slot * walk.slot_stride + row * walk.row_stride + jump +
         column * walk.column_stride;
}

/// Counts how often each element is met, and whether it is met as one of its own channel and ghost batch.
void check(const Geometry& g, Element element, uintptr_t addresses, int processors) {
  const Plan p = cuda::plan(g, element, addresses, processors);
  const char* name = name_of(element);
  const auto channels = static_cast<int64_t>(g.channels), inner = static_cast<int64_t>(g.inner);
  require(p.slots * p.positions == cuda::kThreads, "a block has 256 threads", g, name);
  require(p.width() <= cuda::kWidth, "a block has no more channels than memory for them", g, name);
  require(p.splits >= 1 && p.splits <= p.walk.vectors, "no split is empty", g, name);
  require(static_cast<size_t>(p.walk.vectors * p.share()) == g.count(), "vectors hold all elements", g, name);
  std::vector<int> met(g.size());
  for (int64_t group = 0; group < p.groups; ++group) {
    for (int64_t slot = 0; slot * p.lanes() < channels; ++slot) {
      for (int64_t n = 0; n < p.walk.vectors; ++n) {
        const int64_t first = offset_of(p.walk, n, group, slot);
        require(first % p.vector == 0, "vectors are aligned", g, name);
        for (int64_t v = 0; v < p.vector; ++v) {
          const int64_t i = first + v;
          if (i < 0 || i >= static_cast<int64_t>(met.size())) return require(false, "out of the tensor", g, name);
          ++met[static_cast<size_t>(i)];
          const int64_t o = i / inner / channels, c = i / inner % channels;
          require(c == slot * p.lanes() + (p.across ? v : 0), "the channel of a lane", g, name);
          require(static_cast<int64_t>(g.group_of(static_cast<size_t>(o))) == group, "the ghost batch", g, name);
        }
      }
    }
  }
  for (const int times : met) {
    if (times != 1) return require(false, "each element is met once", g, name);
  }
  const cuda::Needs needs = cuda::needs(g, element, processors);
  require(needs.counters >= p.counter_bytes() && needs.partials >= p.partial_bytes(), "the memory suffices", g, name);
}

}  // namespace

int main() {
  int cases = 0;
  for (const Element element : {Element::f16, Element::bf16, Element::f32, Element::f64}) {
    for (const size_t samples : {1, 3, 8}) {
      for (const size_t groups : {1, 2, 5}) {
        for (const size_t per : {1, 2, 6}) {
          for (const size_t channels : {1, 3, 8, 65, 72}) {
            for (const size_t inner : {1, 2, 4, 7, 16, 49}) {
              for (const uintptr_t address : {uintptr_t{16}, uintptr_t{8}, static_cast<uintptr_t>(size_of(element))}) {
                for (const int processors : {1, 132}) {
                  check({samples, groups, per, channels, inner}, element, address, processors);
                  ++cases;
                }
              }
            }
          }
        }
      }
    }
  }
  std::printf("%d plans, %d failures\n", cases, failures);
  return failures == 0 ? 0 : 1;
}

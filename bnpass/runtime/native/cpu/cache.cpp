#include "cpu/cache.h"

#include <atomic>
#include <fstream>

namespace bnpass::cpu {
namespace {

/// From where the kernel tells: what sysconf knows is ten times too much on some virtual machines.
size_t told() {
  size_t kilobytes = 0;
  std::ifstream("/sys/devices/system/cpu/cpu0/cache/index3/size") >> kilobytes;
  return (kilobytes > 0 ? kilobytes : 8192) * 1024;
}

std::atomic<size_t>& assumed() {
  static std::atomic<size_t> bytes{told()};
  return bytes;
}

}  // namespace

size_t last_level_cache() { return assumed().load(std::memory_order_relaxed); }

void assume_last_level_cache(size_t bytes) { assumed().store(bytes, std::memory_order_relaxed); }

}  // namespace bnpass::cpu

// The last cache before the memory.
#pragma once

#include <cstddef>

namespace bnpass::cpu {

/// Returns its size in bytes: what the system says of it, or 8 MiB.
size_t last_level_cache();

/// Takes another size from now on (for tests).
void assume_last_level_cache(size_t bytes);

}  // namespace bnpass::cpu

#include "cuda/nccl_interface.h"

#include <cstring>

#include "collective/handle.h"
#include "cuda/nccl_group.h"

namespace {

using bnpass::cuda::NcclLibrary;

const NcclLibrary& library_of(size_t count, const char* const* libraries) {
  return NcclLibrary::of_process(std::vector<std::string>(libraries, libraries + count));
}

}  // namespace

int bnpass_nccl_version(size_t library_count, const char* const* libraries, int* version, char* path,
                        size_t path_bytes) {
  return bnpass::collective::guarded([&] {
    const NcclLibrary& library = library_of(library_count, libraries);
    *version = library.version();
    if (path_bytes == 0) return;
    std::strncpy(path, library.path().c_str(), path_bytes - 1);
    path[path_bytes - 1] = '\0';
  });
}

int bnpass_nccl_check(size_t library_count, const char* const* libraries) {
  return bnpass::collective::guarded([&] {
    const NcclLibrary& library = library_of(library_count, libraries);
    bnpass::cuda::NcclId id{};
    library.check(library.call().GetUniqueId(&id), "no id can be made");
  });
}

int bnpass_groups_nccl(const bnpass_groups* host, size_t library_count, const char* const* libraries,
                       bnpass_groups** groups) {
  return bnpass::collective::guarded([&] {
    const NcclLibrary& library = library_of(library_count, libraries);
    *groups = new bnpass_groups{bnpass::cuda::nccl_groups(host->groups, library)};
  });
}

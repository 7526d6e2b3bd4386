#include "cuda/nccl_library.h"

#include <dlfcn.h>

#include <cstdlib>

#include "core/error.h"

namespace bnpass::cuda {
namespace {

constexpr const char* kName = "libnccl.so.2";  // no other name of it is sure to be there

struct Opened {
  void* handle = nullptr;
  std::string tried;
};

void try_open(Opened& opened, const std::string& name) {
  if (opened.handle != nullptr) return;
  opened.handle = dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);
  if (opened.handle == nullptr) opened.tried += (opened.tried.empty() ? "" : "; ") + std::string(dlerror());
}

Opened open_library(const std::vector<std::string>& candidates) {
  Opened opened;
  opened.handle = dlopen(kName, RTLD_NOW | RTLD_LOCAL | RTLD_NOLOAD);  // two of them in one process do not mix
  const char* named = std::getenv("BNPASS_NCCL_LIBRARY");
  if (opened.handle == nullptr && named != nullptr) {
    try_open(opened, named);
    if (opened.handle == nullptr) throw Error("BNPASS_NCCL_LIBRARY: " + opened.tried, Code::not_implemented);
  }
  for (const std::string& candidate : candidates) try_open(opened, candidate);
  try_open(opened, kName);
  if (opened.handle == nullptr) throw Error("no NCCL can be loaded: " + opened.tried, Code::not_implemented);
  return opened;
}

template <class Function>
void find(void* handle, const char* name, Function*& function) {
  function = reinterpret_cast<Function*>(dlsym(handle, name));
  if (function == nullptr) throw Error(std::string("this NCCL has no ") + name, Code::not_implemented);
}

}  // namespace

NcclLibrary::NcclLibrary(const std::vector<std::string>& candidates) {
  void* handle = open_library(candidates).handle;
  find(handle, "ncclGetErrorString", functions_.GetErrorString);
  find(handle, "ncclGetVersion", functions_.GetVersion);
  find(handle, "ncclGetUniqueId", functions_.GetUniqueId);
  find(handle, "ncclCommInitRank", functions_.CommInitRank);
  find(handle, "ncclAllReduce", functions_.AllReduce);
  find(handle, "ncclCommGetAsyncError", functions_.CommGetAsyncError);
  find(handle, "ncclCommAbort", functions_.CommAbort);
  check(functions_.GetVersion(&version_), "NCCL does not tell its version");
  Dl_info info{};
  if (dladdr(reinterpret_cast<void*>(functions_.GetVersion), &info) != 0) path_ = info.dli_fname;
}

const NcclLibrary& NcclLibrary::of_process(const std::vector<std::string>& candidates) {
  static const auto& library = *new NcclLibrary(candidates);  // tried again after an exception
  return library;
}

void NcclLibrary::check(int result, const char* what) const {
  if (result == kNcclSuccess || result == kNcclInProgress) return;
  throw Error(std::string("NCCL: ") + what + ": " + functions_.GetErrorString(result), Code::runtime);
}

int nccl_type(collective::Wire wire) {
  switch (wire) {
    case collective::Wire::i64:
      return 4;
    case collective::Wire::f32:
      return 7;
    case collective::Wire::f64:
      break;
  }
  return 8;
}

int nccl_reduction(collective::Reduction reduction) {
  switch (reduction) {
    case collective::Reduction::max:
      return 2;
    case collective::Reduction::min:
      return 3;
    case collective::Reduction::sum:
      break;
  }
  return 0;
}

}  // namespace bnpass::cuda

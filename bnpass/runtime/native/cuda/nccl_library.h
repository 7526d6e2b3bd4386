// The NCCL library that the process has or can get, called without any header of it.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <string>
#include <vector>

#include "collective/group.h"

namespace bnpass::cuda {

using NcclCommunicator = void*;

/// What the first replica makes and all others need to find it.
struct NcclId {
  char bytes[128];
};

struct NcclFunctions {
  const char* (*GetErrorString)(int);
  int (*GetVersion)(int*);
  int (*GetUniqueId)(NcclId*);
  int (*CommInitRank)(NcclCommunicator*, int size, NcclId, int rank);
  int (*AllReduce)(const void* from, void* to, size_t length, int type, int reduction, NcclCommunicator, cudaStream_t);
  int (*CommGetAsyncError)(NcclCommunicator, int* error);
  int (*CommAbort)(NcclCommunicator);
};

constexpr int kNcclSuccess = 0, kNcclInProgress = 7;

/// NCCL's numbers of types and reductions.
int nccl_type(collective::Wire wire);
int nccl_reduction(collective::Reduction reduction);

class NcclLibrary {
 public:
  /// Returns the library of this process; loads one at the first call, in this order: one that is loaded already, the
  /// one that BNPASS_NCCL_LIBRARY names, the candidates, libnccl.so.2 wherever the system has it.
  /// Throws Error, with Code::not_implemented if there is none.
  static const NcclLibrary& of_process(const std::vector<std::string>& candidates);

  const NcclFunctions& call() const { return functions_; }
  int version() const { return version_; }             ///< 23007 for 2.30.7.
  const std::string& path() const { return path_; }

  /// Throws Error, saying what failed and NCCL's reason, unless result is success.
  void check(int result, const char* what) const;

 private:
  explicit NcclLibrary(const std::vector<std::string>& candidates);

  NcclFunctions functions_{};
  int version_ = 0;
  std::string path_;
};

}  // namespace bnpass::cuda

// The operators on the GPU: the signatures are those of the CPU, what runs in place of a node is another.
#pragma once

#include <memory>

#include "ort/operator.h"

namespace bnpass::cuda {

using MakeKernel = std::unique_ptr<ort::Kernel>(const ort::Node&, const ort::Signature&, const collective::Groups&);

MakeKernel make_sync_batch_normalization, make_sync_batch_normalization_grad, make_sync_batch_moments, make_all_reduce;

/// The signature of an operator of the CPU, with a kernel for the GPU.
ort::Signature on_gpu(ort::Signature signature);

}  // namespace bnpass::cuda

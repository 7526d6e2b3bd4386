// What the operators on the GPU have in common: tensors of a node, the stream, and the statistics of a batch.
#pragma once

#include <vector>

#include "cuda/batch_norm.h"
#include "cuda/workspace.h"
#include "ort/context.h"
#include "ort/node.h"

namespace bnpass::cuda {

/// The stream that ONNX Runtime runs a node on.
cudaStream_t stream_of(const ort::Context& context);

/// A vector of one of these shapes, on the device. Throws Error, naming the input, if its shape is another.
Vector device_vector(const ort::Context& context, size_t input, const char* name, Element element,
                     const std::vector<ort::Dims>& allowed);

/// A batch on the device, and what its statistics become.
struct Batch {
  Geometry geometry;
  Element element;
  const void* X;
};

/// Statistics with the lengths of a geometry.
Statistics statistics_for(const Geometry& geometry);

/// What the statistics of a batch need.
Request request_for(const Batch& batch, const ort::Membership& membership);

/// Takes the statistics of a batch over the group of a node; M = 0: those that are given. Running statistics are left
/// out if there is not just one ghost batch. Other replicas are told of what fails before they get a message.
void batch_statistics(Workspace::Lease& lease, const Batch& batch,
                      const ort::Membership& membership, const Statistics& to, Vector input_mean, Vector input_var);

}  // namespace bnpass::cuda

#include "ort/context.h"

namespace bnpass::ort {

std::string text_of(const Dims& dims) {
  std::string text = "[";
  for (const int64_t dim : dims) text += (text.size() > 1 ? ", " : "") + std::to_string(dim);
  return text + "]";
}

const Value* Context::input(size_t index) const {
  const Value* value = nullptr;
  api_.call<KernelContext_GetInput>(context_, index, &value);
  if (value == nullptr) throw Error("input " + std::to_string(index) + " is missing");
  return value;
}

Dims Context::dims(size_t index) const {
  ShapeInfo* info = nullptr;
  api_.call<GetTensorTypeAndShape>(input(index), &info);
  size_t rank = 0;
  Dims dims;
  std::string error;
  bool read = api_.tries<GetDimensionsCount>(error, info, &rank);
  if (read) {
    dims.resize(rank);
    read = api_.tries<GetDimensions>(error, info, dims.data(), rank);
  }
  api_.release<ReleaseTensorTypeAndShapeInfo>(info);
  if (!read) throw Error(error, Code::fail);
  return dims;
}

const void* Context::data(size_t index) const {
  void* data = nullptr;
  api_.call<GetTensorMutableData>(const_cast<Value*>(input(index)), &data);  // there is no const getter in version 18
  return data;
}

void* Context::output(size_t index, const Dims& dims) const {
  Value* value = nullptr;
  api_.call<KernelContext_GetOutput>(context_, index, dims.data(), dims.size(), &value);
  if (value == nullptr) return nullptr;
  void* data = nullptr;
  api_.call<GetTensorMutableData>(value, &data);
  return data;
}

void SessionThreads::run(size_t tasks, Task task, void* data) {
  if (tasks == 1) {
    task(data, 0);
  } else if (tasks > 1) {
    context_.api().call<KernelContext_ParallelFor>(context_.raw(), task, tasks, size_t{0}, data);
  }
}

}  // namespace bnpass::ort

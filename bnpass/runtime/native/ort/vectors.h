// Vectors per channel, read from and written to the tensors of a node; inside they are double.
#pragma once

#include <vector>

#include "core/element.h"
#include "core/geometry.h"
#include "ort/context.h"

namespace bnpass::ort {

using Vector = std::vector<double>;

/// Reads an input of one of these shapes as double. Throws Error, naming the input, if its shape is another.
Vector vector_of(const Context& context, size_t input, const char* name, Element element,
                 const std::vector<Dims>& allowed);

/// Reads the count of elements behind the statistics: a scalar that is 0 or more. Throws Error otherwise.
double count_of(const Context& context, size_t input);

/// The shape of statistics: [C], with ghost batches [G, C].
Dims statistics_dims(const Geometry& geometry, int64_t virtual_batch_size);

/// Vectors [groups, channels] summed over the groups, [channels].
Vector sum_over_groups(const Geometry& geometry, const Vector& statistics);

/// A vector [channels] repeated for each group, [groups, channels]; one that has that shape already is returned as it is.
Vector for_each_group(const Geometry& geometry, Vector vector);

/// Writes a vector to memory of a type, unless that is null.
void write(const Vector& from, Element element, void* to);

}  // namespace bnpass::ort

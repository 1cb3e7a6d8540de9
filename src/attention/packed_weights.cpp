#include "attention/packed_weights.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <functional>

#include "kernels/dispatch.h"
#include "operators/float32.h"
#include "operators/task_queue.h"

namespace headkit {
namespace {

using Part = PackedHeads::Part;
using Operand = PackedHeads::Operand;

constexpr int64_t kLine = 16;  // floats

// A pair is as long as a float.
int64_t part_floats(const Part& part, Operand operand) {
  const kernels::KernelTable& table = kernels::kernel_table();
  const bool bf16 = operand == Operand::kBf16Pair;
  switch (part.layout) {
    case Part::kBlocks:
      return (bf16 ? table.bf16->block_pairs : table.block_floats)(part.count, part.depth);
    case Part::kColumnPanels:
      return (bf16 ? table.bf16->column_panel_pairs : table.column_panel_floats)(part.count,
                                                                                 part.depth);
    case Part::kVector:
      break;
  }
  return (part.count + table.vector_length - 1) / table.vector_length * table.vector_length;
}

void pack_bf16_matrix(const Part& part, int64_t head, float* packed) {
  const kernels::Bf16Kernels& table = *kernels::kernel_table().bf16;
  const auto* from =
      reinterpret_cast<const kernels::Bf16*>(part.from.const_data_ptr<at::BFloat16>());
  const kernels::Bf16PackMatrixParams matrix{.from = from + head * part.head_step,
                                             .packed = reinterpret_cast<kernels::Bf16Pair*>(packed),
                                             .stride = part.stride,
                                             .count = part.count,
                                             .depth = part.depth};
  part.layout == Part::kBlocks ? table.pack_blocks(matrix) : table.pack_column_panels(matrix);
}

void pack_part(const Part& part, Operand operand, int64_t head, float* packed) {
  if (operand == Operand::kBf16Pair && part.layout != Part::kVector) {
    return pack_bf16_matrix(part, head, packed);
  }
  const kernels::KernelTable& table = kernels::kernel_table();
  const float* from =
      part.from.defined() ? part.from.const_data_ptr<float>() + head * part.head_step : nullptr;
  if (part.layout == Part::kVector) {
    std::fill_n(packed, part_floats(part, operand), 0.0f);
    if (from != nullptr) std::copy_n(from, part.count, packed);
    return;
  }
  const kernels::PackMatrixParams matrix{.from = from,
                                         .packed = packed,
                                         .stride = part.stride,
                                         .count = part.count,
                                         .depth = part.depth,
                                         .transposed = part.transposed};
  part.layout == Part::kBlocks ? table.pack_blocks(matrix) : table.pack_column_panels(matrix);
}

Part vector(const at::Tensor& bias, int64_t head_dim) {
  return {.layout = Part::kVector, .from = bias, .head_step = head_dim, .count = head_dim};
}

// Rows head * dh ... of W [heads * dh, D], x W^T.
Part projection(Part::Layout layout, const at::Tensor& weight, int64_t head_dim) {
  const int64_t width = weight.size(1);
  return {.layout = layout,
          .from = weight,
          .head_step = head_dim * width,
          .count = head_dim,
          .depth = width,
          .stride = width};
}

std::vector<Part> query_parts(const AttentionWeights& w, int64_t head_dim) {
  return {projection(Part::kBlocks, w.q, head_dim), vector(w.q_bias, head_dim)};
}

std::vector<Part> output_parts(const AttentionWeights& w, int64_t head_dim) {
  return {{.layout = Part::kColumnPanels,
           .from = w.o,
           .head_step = head_dim,
           .count = w.o.size(0),
           .depth = head_dim,
           .stride = w.o.size(1)}};
}

std::vector<Part> key_value_parts(const AttentionWeights& w, int64_t head_dim) {
  return {projection(Part::kBlocks, w.k, head_dim), vector(w.k_bias, head_dim),
          projection(Part::kColumnPanels, w.v, head_dim), vector(w.v_bias, head_dim)};
}

std::shared_ptr<const PackedHeads> cached_heads(PackingKind kind,
                                                const std::vector<at::Tensor>& weights,
                                                int64_t heads,
                                                const std::function<std::vector<Part>()>& parts,
                                                Operand operand = Operand::kFloat32) {
  return std::static_pointer_cast<const PackedHeads>(cached_packing(weights, {kind, heads}, [&] {
    return std::make_shared<PackedHeads>(parts(), heads, std::vector<bool>(), operand);
  }));
}

}  // namespace

PackedHeads::PackedHeads(std::vector<Part> parts, int64_t heads, const std::vector<bool>& wanted,
                         Operand operand, Arena* arena) {
  for (Part& part : parts) {
    const bool widen = operand == Operand::kFloat32 || part.layout == Part::kVector;
    part.from = widen ? in_float32(part.from) : part.from.contiguous();
    offset_.push_back(head_floats_);
    head_floats_ += (part_floats(part, operand) + kLine - 1) / kLine * kLine;
  }
  const int64_t floats = heads * head_floats_;
  data_ = arena == nullptr ? aligned_floats(floats)
                           : AlignedFloats{arena->reserve(floats), [](void*) {}};
  run_queue(queue_threads(), heads, 0, [&](int64_t head, float*) {
    if (!wanted.empty() && !wanted[head]) return;
    for (size_t i = 0; i < parts.size(); ++i) {
      pack_part(parts[i], operand, head, data_.get() + head * head_floats_ + offset_[i]);
    }
  });
}

std::shared_ptr<const PackedHeads> packed_query_heads(const AttentionWeights& weights,
                                                      int64_t heads, int64_t head_dim,
                                                      Operand operand) {
  return cached_heads(
      operand == Operand::kFloat32 ? kQueryPacking : kBf16QueryPacking, {weights.q, weights.q_bias},
      heads, [&] { return query_parts(weights, head_dim); }, operand);
}

std::shared_ptr<const PackedHeads> packed_key_value_heads(const AttentionWeights& weights,
                                                          int64_t kv_heads, int64_t head_dim,
                                                          Operand operand) {
  return cached_heads(
      operand == Operand::kFloat32 ? kKeyValuePacking : kBf16KeyValuePacking,
      {weights.k, weights.v, weights.k_bias, weights.v_bias}, kv_heads,
      [&] { return key_value_parts(weights, head_dim); }, operand);
}

std::shared_ptr<const PackedHeads> packed_output_heads(const AttentionWeights& weights,
                                                       int64_t heads, int64_t head_dim,
                                                       Operand operand) {
  return cached_heads(
      operand == Operand::kFloat32 ? kOutputPacking : kBf16OutputPacking, {weights.o}, heads,
      [&] { return output_parts(weights, head_dim); }, operand);
}

std::shared_ptr<const PackedHeads> packed_rows(const at::Tensor& weight, const at::Tensor& bias,
                                               int64_t heads, int64_t head_dim) {
  return cached_heads(kRowsPacking, {weight, bias}, heads, [&] {
    return std::vector<Part>{projection(Part::kColumnPanels, weight, head_dim),
                             vector(bias, head_dim)};
  });
}

PackedHeads pack_output_blocks(const at::Tensor& weight, int64_t head_dim,
                               const std::vector<bool>& wanted, Arena& arena) {
  return {{{.layout = Part::kBlocks,
            .from = weight,
            .head_step = head_dim,
            .count = head_dim,
            .depth = weight.size(0),
            .stride = weight.size(1),
            .transposed = true}},
          static_cast<int64_t>(wanted.size()),
          wanted,
          PackedHeads::Operand::kFloat32,
          &arena};
}

PackedHeads pack_input_panels(const at::Tensor& weight, int64_t head_dim,
                              const std::vector<bool>& wanted, Arena& arena) {
  const int64_t width = weight.size(1);
  return {{{.layout = Part::kColumnPanels,
            .from = weight,
            .head_step = head_dim * width,
            .count = width,
            .depth = head_dim,
            .stride = width,
            .transposed = true}},
          static_cast<int64_t>(wanted.size()),
          wanted,
          PackedHeads::Operand::kFloat32,
          &arena};
}

}  // namespace headkit

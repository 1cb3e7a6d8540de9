#include "feed_forward/packed_blocks.h"

#include <ATen/ATen.h>

#include "kernels/dispatch.h"
#include "operators/float32.h"
#include "operators/task_queue.h"

namespace headkit {
namespace {

std::shared_ptr<const PackedBlocks> pack(const FeedForwardProblem& problem) {
  const kernels::KernelTable& table = kernels::kernel_table();
  const FeedForwardWeights& w = problem.weights;
  const at::Tensor in = in_float32(w.in), up = in_float32(w.up), out = in_float32(w.out);
  const at::Tensor in_bias = in_float32(w.in_bias), up_bias = in_float32(w.up_bias);
  const int64_t width = in.size(1);
  const auto at = [](const at::Tensor& tensor, int64_t place) -> const float* {
    return tensor.defined() ? tensor.const_data_ptr<float>() + place : nullptr;
  };
  auto packed = std::make_shared<PackedBlocks>();
  packed->block_floats = table.packed_block_floats(width, problem.block_size, up.defined());
  packed->output = table.packed_block_output(width, problem.block_size, up.defined());
  packed->data = aligned_floats(problem.blocks * packed->block_floats);
  run_queue(queue_threads(), problem.blocks, 0, [&](int64_t block, float*) {
    const int64_t first = problem.first_neuron(block);
    table.pack_block({.in = at(in, first * width),
                      .up = at(up, first * width),
                      .out = at(out, first),
                      .in_bias = at(in_bias, first),
                      .up_bias = at(up_bias, first),
                      .packed = packed->data.get() + block * packed->block_floats,
                      .width = width,
                      .neurons = problem.neurons_of(block),
                      .block_size = problem.block_size,
                      .out_stride = problem.neurons});
  });
  return packed;
}

}  // namespace

std::shared_ptr<const PackedBlocks> packed_blocks(const FeedForwardProblem& problem) {
  const FeedForwardWeights& w = problem.weights;
  return std::static_pointer_cast<const PackedBlocks>(
      cached_packing({w.in, w.out, w.up, w.in_bias, w.up_bias},
                     {kFeedForwardPacking, problem.block_size}, [&] { return pack(problem); }));
}

}  // namespace headkit

#include "feed_forward/packed_blocks.h"

#include <ATen/ATen.h>

#include "operators/operand.h"
#include "operators/task_queue.h"

namespace headkit {
namespace {

template <class Operand>
std::shared_ptr<const PackedBlocks> pack(const FeedForwardProblem& problem) {
  const auto& table = Operand::kernels();
  const FeedForwardWeights& w = problem.weights;
  const at::Tensor in = elements_of<Operand>(w.in), up = elements_of<Operand>(w.up),
                   out = elements_of<Operand>(w.out);
  const at::Tensor in_bias = in_float32(w.in_bias), up_bias = in_float32(w.up_bias);
  const int64_t width = in.size(1);
  auto packed = std::make_shared<PackedBlocks>();
  packed->block_floats = table.packed_block_floats(width, problem.block_size, up.defined());
  packed->output = table.packed_block_output(width, problem.block_size, up.defined());
  packed->data = aligned_floats(problem.blocks * packed->block_floats);
  run_queue(queue_threads(), problem.blocks, 0, [&](int64_t block, float*) {
    const int64_t first = problem.first_neuron(block);
    table.pack_block({.in = data_of<Operand>(in, first * width),
                      .up = data_of<Operand>(up, first * width),
                      .out = data_of<Operand>(out, first),
                      .in_bias = data_of<Float32Operand>(in_bias, first),
                      .up_bias = data_of<Float32Operand>(up_bias, first),
                      .packed = reinterpret_cast<typename Operand::Packed*>(packed->data.get()) +
                                block * packed->block_floats,
                      .width = width,
                      .neurons = problem.neurons_of(block),
                      .block_size = problem.block_size,
                      .out_stride = problem.neurons});
  });
  return packed;
}

}  // namespace

template <class Operand>
std::shared_ptr<const PackedBlocks> packed_blocks(const FeedForwardProblem& problem) {
  const FeedForwardWeights& w = problem.weights;
  return std::static_pointer_cast<const PackedBlocks>(cached_packing(
      {w.in, w.out, w.up, w.in_bias, w.up_bias},
      {Operand::kPairs ? kBf16FeedForwardPacking : kFeedForwardPacking, problem.block_size},
      [&] { return pack<Operand>(problem); }));
}

template std::shared_ptr<const PackedBlocks> packed_blocks<Float32Operand>(
    const FeedForwardProblem& problem);
template std::shared_ptr<const PackedBlocks> packed_blocks<Bf16Operand>(
    const FeedForwardProblem& problem);

}  // namespace headkit

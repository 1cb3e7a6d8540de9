#pragma once

#include <memory>
#include <string>
#include <vector>

#include "headkit/models/batch.h"
#include "headkit/models/encoder_config.h"
#include "models/encoder_family.h"
#include "models/parameter_visitor.h"

namespace headkit {

/// Everything of an encoder before its first layer.
class EncoderEmbeddings {
 public:
  virtual ~EncoderEmbeddings() = default;
  /// [B, T, D]. `gate` [D] or undefined: gates of the residual stream, where it begins. Throws
  /// std::invalid_argument on tensors that the model does not read, or that do not fit it.
  virtual at::Tensor operator()(const Batch& batch, const at::Tensor& gate = {}) const = 0;
  /// Bool [B, T], true = token; undefined = all are.
  virtual at::Tensor attention_mask(const Batch& batch) const = 0;
  virtual void visit(const std::string& prefix, const ParameterVisitor& visitor) = 0;
};

/// Words, positions and token types, summed and normed: those of the BERT line.
std::unique_ptr<EncoderEmbeddings> make_token_embeddings(const EncoderConfig& config,
                                                         const EncoderFamily& family);
/// Patches of an image after a token of their own, with positions: those of ViT.
std::unique_ptr<EncoderEmbeddings> make_patch_embeddings(const EncoderConfig& config);

/// Throws std::invalid_argument unless all tensors of a batch are among `inputs`, or of those that
/// a batch may hold for losses and records, and the first of `inputs` is there.
void check_inputs(const Batch& batch, const std::vector<std::string>& inputs);

}  // namespace headkit

#include "models/counted_tokens.h"

#include <ATen/ATen.h>

namespace headkit {

at::Tensor batch_entry(const Batch& batch, const std::string& name) {
  const auto found = batch.find(name);
  return found == batch.end() ? at::Tensor() : found->second;
}

bool is_token_mask(const at::Tensor& mask, const at::Tensor& output) {
  return mask.defined() && mask.dim() == 2 && mask.sizes() == output.sizes().slice(0, 2);
}

at::Tensor counted_tokens(const at::Tensor& output, const Batch& batch) {
  if (output.dim() == 2) return {};
  const at::Tensor all = at::ones(output.sizes().slice(0, 2), output.options().dtype(at::kBool));
  const at::Tensor decoder = batch_entry(batch, "decoder_attention_mask");
  if (is_token_mask(decoder, output)) return decoder.to(output.device()).ne(0);
  if (batch.count("decoder_input_ids") > 0) return all;
  const at::Tensor labels = batch_entry(batch, "labels");
  if (is_token_mask(labels, output)) return labels.to(output.device()).ne(kIgnoredLabel);
  const at::Tensor mask = batch_entry(batch, "attention_mask");
  return is_token_mask(mask, output) ? mask.to(output.device()).ne(0) : all;
}

}  // namespace headkit

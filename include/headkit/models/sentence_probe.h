#pragma once

#include <ATen/core/Tensor.h>

#include <memory>

#include "headkit/models/gated_model.h"

namespace headkit {

/// Sentence embedding of hidden states [B, T, D]: mean over valid tokens, L2-normalised, [B, D].
/// `attention_mask`: bool [B, T] or undefined. Source: Reimers, Gurevych 2019.
at::Tensor sentence_embedding(const at::Tensor& hidden, const at::Tensor& attention_mask);

/// A model that ends in a linear classifier on the sentence embedding of `model`: its `head`
/// returns embedding W^T + b, [B, C]. Everything else is passed on; weights of the probe are not
/// parameters of the model (its fingerprint stays).
std::shared_ptr<GatedModel> with_sentence_probe(std::shared_ptr<GatedModel> model,
                                                at::Tensor weight /* [C, D] */,
                                                at::Tensor bias /* [C] */);

/// A model whose `head` is the sentence embedding itself, [B, D].
std::shared_ptr<GatedModel> with_sentence_embedding(std::shared_ptr<GatedModel> model);

}  // namespace headkit

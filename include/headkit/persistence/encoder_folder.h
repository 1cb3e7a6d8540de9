#pragma once

#include <ATen/core/ScalarType.h>

#include <memory>
#include <optional>
#include <string>

#include "headkit/gates/gate_policy.h"
#include "headkit/models/encoder.h"
#include "headkit/persistence/model_folder.h"

namespace headkit {

/// How a folder is read.
struct EncoderOptions {
  /// The class, where config.json names none or another one: "BertModel" of a masked language
  /// model. "" = what the folder says. Not for a folder that headkit wrote.
  std::string architecture = {};
  std::optional<at::ScalarType> dtype = {};  ///< of the weights; default as they lie in the file
};

/// An encoder, and what was saved with it.
///
///     const auto [model, gates, policy] = headkit::load_encoder("pruned");
///     const headkit::PolicyRun run = headkit::run_policy(*model, batch, *policy);
struct SavedEncoder {
  std::shared_ptr<Encoder> model;
  GateSet gates;                       ///< static gates that belong to the model; may be empty
  std::shared_ptr<GatePolicy> policy;  ///< null = none
};

/// Loads an encoder from a folder of Hugging Face (config.json with model.safetensors, or with the
/// parts that model.safetensors.index.json names), or from one that headkit wrote, in Python or
/// here, whatever was removed from the model. Weights share a mapping of the file until they are
/// written to: it may be replaced meanwhile, but not be changed in place. Tensors of other parts of
/// the model are left out.
///
/// Throws std::runtime_error, naming the file, where one is missing, damaged or contradicts
/// another, and for a model that `EncoderConfig` or `Encoder` refuses; std::invalid_argument for a
/// policy that was calibrated for another model.
SavedEncoder load_encoder(const std::string& folder, const EncoderOptions& options = {});

/// The content that saves an encoder as it is, for this library and for `headkit.load` in Python;
/// add gates and a policy to it and hand it to `write_model_folder`.
ModelFolder describe_encoder(Encoder& model);

}  // namespace headkit

#pragma once

#include <cstdint>
#include <string>

#include "headkit/core/gate_set.h"
#include "headkit/core/head_layout.h"
#include "headkit/core/head_mask.h"
#include "headkit/models/gated_model.h"
#include "headkit/persistence/safetensors.h"

namespace headkit {

/// Everything a saved model is, and what one folder holds:
///
///     config.json                     the model's own configuration, for other tools
///     weights-<sha256>.safetensors    weights as they are now (removed heads are not in them)
///     headkit.json                    the rest, the configuration included; written last
///
/// headkit.json alone decides what the folder contains. It names the weights by their hash, so that
/// a folder is at any moment either the old model or the new one.
struct ModelFolder {
  /// Written is the oldest schema that says everything: 1 for heads alone, 2 where neurons or whole
  /// blocks were removed or have static gates.
  static constexpr int64_t kSchema = 2;

  HeadLayout layout;             ///< of the original model
  HeadMask heads;                ///< what is left, original indices
  at::Tensor neurons = {};       ///< what is left, bool [L, F]; undefined = all
  Sublayers sublayers = {};      ///< blocks that are left; empty lists = all
  std::string base_fingerprint;  ///< GatedModel::fingerprint() of the model before any removal
  NamedTensors weights;          ///< GatedModel::parameters()
  GateSet gates;                 ///< static gates and dropped outputs of the model; may be empty
  std::string policy;            ///< JSON of a gate policy; "" = none
  std::string config;            ///< JSON of config.json; "" = none
  std::string details;           ///< JSON object for the caller: model class, scores ...; "" = none
  std::string headkit_version;   ///< filled by the reader
  std::string torch_version;     ///< filled by the reader
  std::string weights_sha256;    ///< filled by the reader
};

/// Writes the folder (made if missing; its parent must exist), whole or not at all: hashed weights
/// first, each file flushed to disk, headkit.json renamed into place last, then older weights are
/// dropped. Throws std::invalid_argument if the content contradicts itself, std::runtime_error
/// where the disk refuses; an older model in the folder is intact then.
void write_model_folder(const std::string& folder, const ModelFolder& content);

/// Reads what write_model_folder wrote; tensors share a mapping of the file. Throws
/// std::runtime_error on a missing, truncated, changed or contradictory file and on a newer schema,
/// saying what was found and what to do.
ModelFolder read_model_folder(const std::string& folder);

/// The content that saves `model` as it is. `base_fingerprint` may be empty only for a whole model:
/// it is the base then.
ModelFolder describe_model(GatedModel& model, const std::string& base_fingerprint = "");

/// Turns `model`, the unpruned base, into the saved one: removes heads, neurons and blocks and
/// copies every weight, bit for bit. Happens whole or not at all. Throws std::invalid_argument,
/// `model` untouched, if its fingerprint is not the base's, or layout, names, shapes or dtypes
/// differ. `check_base` = false takes any model of that shape, for one freshly built from the
/// configuration.
void restore_model(GatedModel& model, const ModelFolder& content, bool check_base = true);

}  // namespace headkit

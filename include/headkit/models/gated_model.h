#pragma once

#include <ATen/core/Tensor.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "headkit/attention/gated_attention.h"
#include "headkit/core/gate_set.h"
#include "headkit/core/head_layout.h"
#include "headkit/core/head_mask.h"
#include "headkit/feed_forward/gated_feed_forward.h"
#include "headkit/models/batch.h"

namespace headkit {

/// What flows between the stages of a model: the residual stream before layer `layer`.
struct ModelState {
  /// The implementation's own part of a state.
  struct Extra {
    virtual ~Extra() = default;
  };

  at::Tensor hidden;                   ///< [B, T, D]
  at::Tensor attention_mask;           ///< bool [B, T], true = token; undefined = no padding
  Batch batch;                         ///< the inputs it came from (labels included)
  int64_t layer = 0;                   ///< the next layer to run
  std::shared_ptr<const Extra> extra;  ///< for example a Python object; may be null

  /// The rows of these samples. Implementations with `extra` override GatedModel::select.
  ModelState select_samples(const at::Tensor& index) const;
};

/// One call of an attention block, as `gated_attention` takes it.
struct AttentionBlockCall {
  at::Tensor x;
  AttentionWeights weights;  ///< the tensors of the call, so that gradients can be taken by them
  int64_t num_heads = 0;
  AttentionInput input;
};

/// What a caller wants to see of a run. Ask by setting a flag; read the vectors afterwards.
struct Taps {
  bool attention_inputs = false;      ///< ask for the input of each attention block
  bool head_contexts = false;         ///< ask for what the heads of each block make of it
  bool attention_outputs = false;     ///< ask for what each attention block adds
  bool feed_forward_inputs = false;   ///< ask for the input of each feed-forward block
  bool neuron_activations = false;    ///< ask for what the neurons of each block make of it
  bool feed_forward_outputs = false;  ///< ask for what each feed-forward block adds
  bool attention_calls = false;       ///< ask for the calls of attention blocks

  std::vector<at::Tensor> attention_input = {};  ///< by block run, [B, T, D]
  /// By block run, [B, T, heads present, dh]: output of each head before gate and output
  /// projection. T may differ between blocks.
  std::vector<at::Tensor> head_context = {};
  /// By block run, with either of them: bool [B, T], true = token; undefined = all are tokens.
  std::vector<at::Tensor> valid = {};
  /// By block run, [B, T, D]: what an attention block adds to the residual stream (before dropout),
  /// under the gates of the run, that of the whole block and the output bias included.
  std::vector<at::Tensor> attention_output = {};
  std::vector<at::Tensor> feed_forward_input = {};  ///< by feed-forward block run, [B, T, D]
  /// By feed-forward block run, [B, T, neurons present]: what goes into the second linear map,
  /// before the gates.
  std::vector<at::Tensor> neurons = {};
  std::vector<at::Tensor> feed_forward_output = {};     ///< as `attention_output`
  std::vector<AttentionBlockCall> attention_call = {};  ///< by block run
};

/// Units beside heads that a model has gates of.
struct GatedUnits {
  bool neurons = false;                 ///< also neurons(), feed_forward(), replace_feed_forward()
  bool attention_sublayers = false;     ///< also sublayers(), set_sublayers()
  bool feed_forward_sublayers = false;  ///< with `neurons`
  bool hidden = false;
};

/// Which blocks of a model are open, one entry for each.
struct Sublayers {
  std::vector<bool> attention;
  std::vector<bool> feed_forward;  ///< empty for a model that does not show its feed-forward blocks

  bool all() const;
};

/// A transformer whose heads have gates: the one interface that scorers, pruners, policies and
/// explanations use. Staged, so that a prefix can be shared, a decision taken midway, or a
/// sub-batch run on.
///
///     outputs = model(batch, gates) = head(run(embed(batch), 0, layers, gates))
///
/// A gate set with all gates 1 gives the outputs of the original model.
class GatedModel {
 public:
  virtual ~GatedModel() = default;

  virtual HeadLayout layout() const = 0;  ///< of the original model
  virtual HeadMask heads() const = 0;     ///< heads that are physically there

  virtual ModelState embed(const Batch& batch) = 0;
  /// Runs layers first .. last-1. `state.layer` must equal `first`. Gates are those of the whole
  /// model, in original indices; a head that was removed stays closed whatever its gate, and adds
  /// nothing (a compensation for it was folded into the output bias).
  virtual ModelState run(const ModelState& state, int64_t first, int64_t last, const GateSet& gates,
                         Taps* taps = nullptr) = 0;
  /// Task output from the last state: logits [B, C], or whatever the model was attached with.
  virtual at::Tensor head(const ModelState& state) = 0;
  /// The state of these samples, in this order; `index`: int64 [n].
  virtual ModelState select(const ModelState& state, const at::Tensor& index);

  /// Weights of a layer's attention, of the heads that are physically there (original order). K and
  /// V hold exactly the KV heads that these read, ascending (HeadLayout::kv_heads_of).
  virtual AttentionWeights attention(int64_t layer) = 0;
  /// Puts new attention weights in place; `kept` are the original indices of their heads. Must not
  /// fail half-way. An output bias may be new, that of heads whose mean output stays, and may go
  /// again; other biases are those of the original.
  virtual void replace_attention(int64_t layer, const AttentionWeights& weights,
                                 const std::vector<int64_t>& kept) = 0;
  /// What has gates beside the heads. Gates of anything else are refused by `check`.
  virtual GatedUnits gated_units() const { return {}; }
  /// Throws std::invalid_argument if `gates` do not fit the model, or gate what has no gates in it.
  /// `batch` = -1 accepts any batch.
  void check(const char* operation, int64_t batch, const GateSet& gates);

  /// Neurons that are physically there, bool [L, F]: layers with a feed-forward block, neurons of
  /// the original. The default throws std::invalid_argument, as do the next two.
  virtual at::Tensor neurons();
  /// Weights of a layer's feed-forward block, of the neurons that are physically there (original
  /// order).
  virtual FeedForwardWeights feed_forward(int64_t layer);
  /// Puts new feed-forward weights in place; `kept` are the original indices of their neurons. Must
  /// not fail half-way.
  virtual void replace_feed_forward(int64_t layer, const FeedForwardWeights& weights,
                                    const std::vector<int64_t>& kept);
  /// Blocks that are physically there. One that is not adds nothing, and costs nothing: neither
  /// its output bias, which a block without heads or neurons still adds.
  virtual Sublayers sublayers();
  /// Opens and closes whole blocks; their weights stay as they are.
  virtual void set_sublayers(const Sublayers& open);
  /// Whether no head, neuron or block was removed.
  bool is_whole();

  /// Keeps the model in evaluation mode (no dropout) while the returned object lives, then puts it
  /// back into the mode it had. Null for a model that has only one mode.
  virtual std::shared_ptr<void> evaluating() { return nullptr; }
  /// All parameters and buffers that define the function, by name.
  virtual std::vector<std::pair<std::string, at::Tensor>> parameters() = 0;

  /// Runs the whole model. Throws std::invalid_argument, before anything runs, if the gates do not
  /// fit.
  at::Tensor operator()(const Batch& batch, const GateSet& gates = {}, Taps* taps = nullptr);

  /// SHA-256 over names, dtypes, shapes and bytes of `parameters()`: the identity of the weights.
  std::string fingerprint();
};

}  // namespace headkit

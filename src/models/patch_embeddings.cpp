#include <ATen/ATen.h>

#include "headkit/core/error.h"
#include "models/encoder_embeddings.h"

namespace headkit {
namespace {

class PatchEmbeddings final : public EncoderEmbeddings {
 public:
  explicit PatchEmbeddings(const EncoderConfig& config) : config_(config) {}

  at::Tensor operator()(const Batch& batch, const at::Tensor& /*gate*/) const override {
    check_inputs(batch, {"pixel_values"});
    const at::Tensor& pixels = batch.at("pixel_values");
    HEADKIT_CHECK(pixels.dim() == 4 && pixels.size(1) == config_.channels &&
                      pixels.size(2) == config_.image_height &&
                      pixels.size(3) == config_.image_width,
                  "embed",
                  c10::str("pixel_values of shape [batch, ", config_.channels, ", ",
                           config_.image_height, ", ", config_.image_width, "]"),
                  "shape ", pixels.sizes());
    const at::Tensor patches = at::conv2d(pixels.to(patch_.weight.scalar_type()), patch_.weight,
                                          patch_.bias, {config_.patch_height, config_.patch_width})
                                   .flatten(2)
                                   .transpose(1, 2);
    return at::cat({first_.expand({pixels.size(0), -1, -1}), patches}, 1) + positions_;
  }

  at::Tensor attention_mask(const Batch& /*batch*/) const override { return {}; }

  void visit(const std::string& prefix, const ParameterVisitor& visitor) override {
    const int64_t width = config_.layout.model_dim;
    const int64_t patches =
        (config_.image_height / config_.patch_height) * (config_.image_width / config_.patch_width);
    const std::string path = prefix + "embeddings.";
    visitor(path + "cls_token", first_, {1, 1, width});
    visitor(path + "position_embeddings", positions_, {1, patches + 1, width});
    const std::string projection = path + "patch_embeddings.projection";
    visitor(projection + ".weight", patch_.weight,
            {width, config_.channels, config_.patch_height, config_.patch_width});
    visitor(projection + ".bias", patch_.bias, {width});
  }

 private:
  EncoderConfig config_;
  at::Tensor first_, positions_;
  Linear patch_;
};

}  // namespace

std::unique_ptr<EncoderEmbeddings> make_patch_embeddings(const EncoderConfig& config) {
  return std::make_unique<PatchEmbeddings>(config);
}

}  // namespace headkit

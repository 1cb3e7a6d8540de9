#include "headkit/models/data_hash.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <set>

#include "core/sha256.h"

namespace headkit {
namespace {

// Whether the second axis of a tensor is that of the tokens.
bool by_token(const std::string& name, const at::Tensor& tensor, int64_t tokens) {
  const bool classes = name == "labels" && tensor.is_floating_point();
  return tensor.dim() >= 2 && tensor.size(1) == tokens && !classes;
}

std::string hash_of(std::vector<std::string> examples) {
  if (examples.empty()) return "";
  std::sort(examples.begin(), examples.end());
  Sha256 sum;
  for (const std::string& example : examples) sum.update(example);
  return sum.hex();
}

void append(std::vector<std::string>& all, std::vector<std::string> more) {
  all.insert(all.end(), std::make_move_iterator(more.begin()), std::make_move_iterator(more.end()));
}

std::vector<std::string> all_examples(const DataSource& data) {
  std::vector<std::string> all;
  data.for_each([&](const Batch& batch) { append(all, example_hashes(batch)); });
  return all;
}

}  // namespace

std::vector<std::string> example_hashes(const Batch& batch) {
  const int64_t examples = batch_size(batch);
  Batch on_cpu;
  for (const auto& [name, tensor] : batch) on_cpu[name] = tensor.detach().cpu();
  at::Tensor mask;
  if (const auto found = on_cpu.find("attention_mask");
      found != on_cpu.end() && found->second.dim() == 2) {
    mask = found->second.ne(0);
  }
  std::vector<std::string> hashes;
  for (int64_t i = 0; i < examples; ++i) {
    Sha256 sum;
    const at::Tensor tokens = mask.defined() ? mask[i].nonzero().flatten() : at::Tensor();
    for (const auto& [name, tensor] : on_cpu) {
      at::Tensor row = tensor[i];
      if (mask.defined() && by_token(name, tensor, mask.size(1))) row = row.index_select(0, tokens);
      row = row.contiguous();
      // Lengths first, so that no two examples give the same bytes.
      std::string header =
          std::to_string(name.size()) + ":" + name + " " + std::string(row.dtype().name()) + " [";
      for (const int64_t size : row.sizes()) header += std::to_string(size) + ",";
      sum.update(header + "]");
      sum.update(row.const_data_ptr(), row.nbytes());
    }
    hashes.push_back(sum.hex());
  }
  return hashes;
}

std::string data_hash(const DataSource& data) { return hash_of(all_examples(data)); }

int64_t shared_examples(const DataSource& data, const DataSource& other) {
  const std::vector<std::string> others = all_examples(other);
  const std::set<std::string> known(others.begin(), others.end());
  const std::vector<std::string> own = all_examples(data);
  return std::count_if(own.begin(), own.end(),
                       [&](const std::string& example) { return known.count(example) > 0; });
}

void HashedData::for_each(const std::function<void(const Batch&)>& visit) const {
  if (!hash_.empty()) {
    data_.for_each(visit);
    return;
  }
  std::vector<std::string> seen;
  data_.for_each([&](const Batch& batch) {
    append(seen, example_hashes(batch));
    visit(batch);
  });
  hash_ = hash_of(std::move(seen));
}

}  // namespace headkit

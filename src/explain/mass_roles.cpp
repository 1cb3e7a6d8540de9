#include <ATen/ATen.h>

#include <algorithm>

#include "explain/row_cursor.h"
#include "explain/text_roles.h"
#include "headkit/explain/role_sums.h"

namespace headkit {
namespace {

// Mass on some keys of each sequence.
class MassRole : public RoleAccumulator {
 public:
  MassRole(const std::string& role, const std::string& variant, const HeadLayout& layout,
           std::string reason)
      : sums_(role, variant, layout), reason_(std::move(reason)) {}

  void add(const RoleRows& rows) override {
    const Keys keys = keys_of(rows);
    if (keys.places.empty()) return;
    const SampleAttention& attention = rows.attention;
    for (int64_t h = 0; h < rows.heads(); ++h) {
      const int64_t head = attention.heads[static_cast<size_t>(h)];
      RoleSums::Sums& sums = sums_.of(attention.sample, attention.layer, head);
      RoleSums::Totals& totals = sums_.totals(attention.layer, head);
      RowCursor row(rows, h);
      for (int64_t i = keys.first_query; i < rows.queries(); ++i) {
        row.move_to(i);
        if (!row.valid) continue;
        double mass = 0, seen = 0;
        for (const int64_t key : keys.places) {
          mass += row.weights[key];
          seen += row.allowed[key] ? 1 : 0;
        }
        if (seen == 0) continue;
        sums.score += mass;
        sums.rows += 1;
        totals.uniform += seen / row.keys_allowed;
      }
    }
  }

  void merge(const RoleAccumulator& other) override {
    sums_.merge(dynamic_cast<const MassRole&>(other).sums_);
  }

  void finish(const RoleEnd& end, RoleTable& table) const override {
    add_scores(sums_.scores(end, {}, reason_), table);
  }

 protected:
  struct Keys {
    std::vector<int64_t> places;
    int64_t first_query = 0;
  };
  virtual Keys keys_of(const RoleRows& rows) const = 0;

 private:
  RoleSums sums_;
  std::string reason_;
};

class DelimiterRole final : public MassRole {
 public:
  DelimiterRole(const HeadLayout& layout, const std::string& name, std::vector<int64_t> ids)
      : MassRole("delimiter", name, layout,
                 ids.empty() ? "no such token is known" : "no sequence has such a token"),
        ids_(std::move(ids)) {
    std::sort(ids_.begin(), ids_.end());
  }

 protected:
  Keys keys_of(const RoleRows& rows) const override {
    Keys keys;
    if (!rows.key_tokens.defined()) return keys;
    const int64_t* tokens = rows.key_tokens.const_data_ptr<int64_t>();
    for (int64_t j = 0; j < rows.keys(); ++j) {
      if (std::binary_search(ids_.begin(), ids_.end(), tokens[j])) keys.places.push_back(j);
    }
    return keys;
  }

 private:
  std::vector<int64_t> ids_;
};

class FirstTokenSink final : public MassRole {
 public:
  explicit FirstTokenSink(const HeadLayout& layout)
      : MassRole("first_token_sink", "", layout, "no sequence of two tokens") {}

 protected:
  // Row 0 sees little but itself.
  Keys keys_of(const RoleRows& rows) const override {
    if (!rows.same_tokens()) return {};
    const bool* valid = rows.attention.query_valid.const_data_ptr<bool>();
    const int64_t first = std::find(valid, valid + rows.queries(), true) - valid;
    return first < rows.queries() ? Keys{{first}, first + 1} : Keys{};
  }
};

}  // namespace

RolePointer delimiter_role(const HeadLayout& layout, const std::string& name,
                           std::vector<int64_t> ids) {
  return std::make_unique<DelimiterRole>(layout, name, std::move(ids));
}

RolePointer first_token_sink(const HeadLayout& layout) {
  return std::make_unique<FirstTokenSink>(layout);
}

}  // namespace headkit

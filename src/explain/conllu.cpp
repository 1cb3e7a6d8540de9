#include "headkit/explain/conllu.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <fstream>
#include <iterator>
#include <optional>

#include "explain/code_points.h"
#include "headkit/core/error.h"

namespace headkit {
namespace {

constexpr auto kOperation = "conllu";
constexpr size_t kColumns = 10;
enum Column { kId = 0, kForm = 1, kHead = 6, kRelation = 7, kMisc = 9 };
using Columns = std::array<std::string_view, kColumns>;

// What a message shows of a field that may be long or hold control characters.
std::string shown(std::string_view field) {
  constexpr size_t kShown = 40;
  std::string text = "'";
  for (const char c : field.substr(0, kShown)) {
    text += static_cast<unsigned char>(c) < 0x20 || c == 0x7f ? '?' : c;
  }
  return text + (field.size() > kShown ? "...'" : "'");
}

std::optional<int64_t> whole_number(std::string_view text) {
  int64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size() || value < 0) return std::nullopt;
  return value;
}

bool has_space_after(std::string_view misc) {
  constexpr std::string_view kNone = "SpaceAfter=No";
  for (size_t begin = 0; begin <= misc.size();) {
    const size_t end = std::min(misc.find('|', begin), misc.size());
    if (misc.substr(begin, end - begin) == kNone) return false;
    begin = end + 1;
  }
  return true;
}

class Reader {
 public:
  explicit Reader(const std::string& source) : source_(source) {}

  std::vector<DependencySentence> read(std::string_view content) {
    for (size_t begin = 0; begin < content.size();) {
      const size_t end = std::min(content.find('\n', begin), content.size());
      ++line_;
      read_line(content.substr(begin, end - begin));
      begin = end + 1;
    }
    ++line_;
    finish_sentence();
    return std::move(sentences_);
  }

 private:
  // A printed token of several words.
  struct Range {
    int64_t first, last;
    std::string form;
    TextSpan span;
  };

  void read_line(std::string_view line) {
    if (!line.empty() && line.back() == '\r') line.remove_suffix(1);
    if (line.empty()) return finish_sentence();
    if (line.front() == '#') return;
    const Columns columns = split(line);
    const std::string_view id = columns[kId];
    if (const size_t dash = id.find('-'); dash != std::string_view::npos) {
      read_range(columns, whole_number(id.substr(0, dash)), whole_number(id.substr(dash + 1)));
    } else if (const size_t dot = id.find('.'); dot != std::string_view::npos) {
      check(whole_number(id.substr(0, dot)) && whole_number(id.substr(dot + 1)), "an ID",
            shown(id));
    } else {
      read_word(columns);
    }
  }

  Columns split(std::string_view line) const {
    Columns columns;
    size_t found = 0;
    for (size_t begin = 0; begin <= line.size(); ++found) {
      const size_t end = std::min(line.find('\t', begin), line.size());
      if (found < kColumns) columns[found] = line.substr(begin, end - begin);
      begin = end + 1;
    }
    check(found == kColumns, "10 columns with tabs between", found);
    return columns;
  }

  void read_range(const Columns& columns, std::optional<int64_t> first,
                  std::optional<int64_t> last) {
    check(first && last && *first == next_word() && *last >= *first,
          "a range of IDs from " + std::to_string(next_word()), shown(columns[kId]));
    check(!range_ || next_word() > range_->last, "ranges of IDs that do not overlap",
          shown(columns[kId]));
    range_ = Range{*first, *last, std::string(columns[kForm]), print(columns)};
  }

  void read_word(const Columns& columns) {
    const int64_t id = next_word();
    check(whole_number(columns[kId]) == id, "ID " + std::to_string(id), shown(columns[kId]));
    const std::optional<int64_t> head = whole_number(columns[kHead]);
    check(head && *head != id, "a HEAD that is the ID of another word, or 0",
          shown(columns[kHead]));
    check(!columns[kRelation].empty(), "a DEPREL", "none");
    const bool in_range = range_ && id <= range_->last;
    const TextSpan span = in_range ? range_->span : print(columns);
    sentence_.words.emplace_back(columns[kForm]);
    sentence_.spans.push_back(span);
    sentence_.head.push_back(*head - 1);
    sentence_.relation.emplace_back(columns[kRelation]);
    head_lines_.push_back(line_);
    if (in_range && id == range_->last) spread_over_words(*range_);
  }

  // Appends a printed token to the text.
  TextSpan print(const Columns& columns) {
    const std::string_view form = columns[kForm];
    const std::optional<int64_t> length = count_code_points(form);
    check(length.has_value(), "text in UTF-8", "other bytes in FORM");
    check(*length > 0, "a FORM", "none");
    if (space_) {
      sentence_.text += ' ';
      ++printed_;
    }
    sentence_.text += form;
    space_ = has_space_after(columns[kMisc]);
    const int64_t begin = printed_;
    printed_ += *length;
    return {begin, printed_};
  }

  // Gives the words of a printed token their own characters, if they spell it.
  void spread_over_words(const Range& range) {
    const auto first = static_cast<size_t>(range.first - 1), last = static_cast<size_t>(range.last);
    std::string spelled;
    for (size_t w = first; w < last; ++w) spelled += sentence_.words[w];
    if (spelled != range.form) return;
    int64_t begin = range.span.begin;
    for (size_t w = first; w < last; ++w) {
      const int64_t length = count_code_points(sentence_.words[w]).value_or(0);
      sentence_.spans[w] = {begin, begin + length};
      begin += length;
    }
  }

  void finish_sentence() {
    const auto words = static_cast<int64_t>(sentence_.words.size());
    check(!range_ || range_->last <= words, "the words of a range of IDs",
          range_ ? words - range_->first + 1 : 0);
    for (size_t w = 0; w < sentence_.head.size(); ++w) {
      HEADKIT_CHECK(sentence_.head[w] < words, kOperation,
                    "a HEAD up to " + std::to_string(words) + " in line " +
                        std::to_string(head_lines_[w]) + " of " + source_,
                    sentence_.head[w] + 1);
    }
    if (words > 0) sentences_.push_back(std::move(sentence_));
    sentence_ = {};
    head_lines_.clear();
    range_.reset();
    space_ = false;
    printed_ = 0;
  }

  int64_t next_word() const { return static_cast<int64_t>(sentence_.words.size()) + 1; }

  template <typename Found>
  void check(bool holds, const std::string& expected, const Found& found) const {
    HEADKIT_CHECK(holds, kOperation,
                  expected + " in line " + std::to_string(line_) + " of " + source_, found);
  }

  const std::string& source_;
  std::vector<DependencySentence> sentences_;
  DependencySentence sentence_;
  std::vector<int64_t> head_lines_;
  std::optional<Range> range_;
  bool space_ = false;   // before the next printed token
  int64_t printed_ = 0;  // characters of the text
  int64_t line_ = 0;
};

}  // namespace

std::vector<DependencySentence> parse_conllu(std::string_view content, const std::string& source) {
  return Reader(source).read(content);
}

std::vector<DependencySentence> read_conllu(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  const std::string content{std::istreambuf_iterator<char>(file), {}};
  HEADKIT_CHECK_RUNTIME(file.is_open() && !file.bad(), kOperation, "a file that can be read", path);
  return parse_conllu(content, path);
}

}  // namespace headkit

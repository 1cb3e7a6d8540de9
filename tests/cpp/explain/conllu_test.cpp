#include "headkit/explain/conllu.h"

#include <gtest/gtest.h>

#include <fstream>
#include <random>

#include "explain/code_points.h"
#include "support/scratch_folder.h"

namespace headkit {
namespace {

using Spans = std::vector<TextSpan>;

std::string word(const std::string& id, const std::string& form, const std::string& head,
                 const std::string& relation, const std::string& misc = "_") {
  return id + "\t" + form + "\t_\t_\t_\t_\t" + head + "\t" + relation + "\t_\t" + misc + "\n";
}

// "We don't, Zoë." and "vámonos", which its words do not spell.
std::string treebank() {
  return "# sent_id = 1\n# text = not read\n" + word("1", "We", "3", "nsubj") +
         word("2-3", "don't", "_", "_", "Lang=en|SpaceAfter=No") + word("2", "do", "3", "aux") +
         word("3", "n't", "0", "root") + word("3.1", "go", "_", "_") +
         word("4", ",", "3", "punct", "SpaceAfter=NoWay") +
         word("5", "Zo\xc3\xab", "3", "vocative:x", "SpaceAfter=No") +
         word("6", ".", "3", "punct") + "\n\n" + word("1-2", "v\xc3\xa1monos", "_", "_") +
         word("1", "vamos", "0", "root") + word("2", "nos", "1", "obj");
}

std::vector<DependencySentence> parse(const std::string& text) {
  return parse_conllu(text, "file");
}

std::string refusal(const std::string& text) {
  try {
    parse(text);
  } catch (const std::invalid_argument& error) {
    return error.what();
  }
  return "nothing refused";
}

TEST(ConlluTest, ReadsWordsArcsAndPlacesInTheText) {
  const auto sentences = parse(treebank());
  ASSERT_EQ(sentences.size(), 2u);
  const DependencySentence& first = sentences[0];
  EXPECT_EQ(first.text, "We don't, Zo\xc3\xab.");
  EXPECT_EQ(first.words, (std::vector<std::string>{"We", "do", "n't", ",", "Zo\xc3\xab", "."}));
  EXPECT_EQ(first.head, (std::vector<int64_t>{2, 2, -1, 2, 2, 2}));
  EXPECT_EQ(first.relation[4], "vocative:x");
  EXPECT_EQ(first.spans, (Spans{{0, 2}, {3, 5}, {5, 8}, {8, 9}, {10, 13}, {13, 14}}));
  EXPECT_EQ(sentences[1].text, "v\xc3\xa1monos");
  EXPECT_EQ(sentences[1].spans, (Spans{{0, 7}, {0, 7}}));
}

TEST(ConlluTest, LineEndsAndTheLastBlankLineMakeNoDifference) {
  std::string windows;
  for (const char c : treebank()) windows += c == '\n' ? "\r\n" : std::string(1, c);
  EXPECT_EQ(parse(windows)[0].spans, parse(treebank())[0].spans);
  EXPECT_EQ(parse(treebank() + "\n").size(), 2u);
  EXPECT_TRUE(parse("").empty());
  EXPECT_TRUE(parse("# only this\n\n\n").empty());
}

TEST(ConlluTest, SaysWhatIsWrongAndWhere) {
  const std::string one = word("1", "a", "0", "root");
  EXPECT_EQ(refusal("1\ta\t_\n"),
            "[conllu] expected 10 columns with tabs between in line 1 of file; found 3");
  const std::vector<std::pair<std::string, std::string>> broken{
      {one + "x" + one, "line 2"},
      {one + one, "ID 2 in line 2"},
      {one + word("2", "b", "3", "dep") + "\n", "HEAD up to 2 in line 2"},
      {one + word("2", "b", "3", "dep"), "HEAD up to 2 in line 2"},
      {word("1", "a", "1", "dep"), "HEAD"},
      {word("1", "a", "-1", "dep"), "HEAD"},
      {word("1", "a", "99999999999999999999", "dep"), "HEAD"},
      {word("1", "a", "_", "dep"), "HEAD"},
      {word("1", "a", "0", ""), "DEPREL"},
      {word("1", "", "0", "root"), "FORM"},
      {word("1", "\xff", "0", "root"), "UTF-8"},
      {word("1", "\xed\xa0\x80", "0", "root"), "UTF-8"},
      {word("", "a", "0", "root"), "ID 1"},
      {word("1.", "a", "_", "_"), "an ID"},
      {word("2-3", "a", "_", "_"), "IDs from 1"},
      {word("1-", "a", "_", "_"), "IDs from 1"},
      {word("1-0", "a", "_", "_"), "IDs from 1"},
      {word("1-2", "a", "_", "_") + one, "words of a range"},
      {word("1-2", "a", "_", "_"), "words of a range"},
      {word("1-3", "a", "_", "_") + one + word("2-3", "b", "_", "_"), "overlap"},
      {word("1-9223372036854775807", "a", "_", "_") + one, "words of a range"}};
  for (const auto& [text, reason] : broken) {
    EXPECT_NE(refusal(text).find(reason), std::string::npos) << text << refusal(text);
  }
  EXPECT_LT(refusal(word(std::string(100000, '\t'), "a", "0", "root")).size(), 200u);
  EXPECT_LT(refusal(word(std::string(100000, 'x'), "a", "0", "root")).size(), 200u);
}

TEST(ConlluTest, IsSafeOnAnyBytes) {
  std::mt19937_64 random(7);
  const std::string sound = treebank();
  const std::string bytes = "\t\n\r-.|#0123456789_ax\xc3\xab\xff";
  int64_t read = 0;
  for (int trial = 0; trial < 20000; ++trial) {
    std::string text = sound.substr(0, random() % 4 == 0 ? random() % sound.size() : sound.size());
    for (uint64_t change = random() % 4; change > 0 && !text.empty(); --change) {
      const char byte = bytes[random() % bytes.size()];
      const size_t at = random() % text.size();
      switch (random() % 3) {
        case 0:
          text[at] = byte;
          break;
        case 1:
          text.erase(at, 1 + random() % 8);
          break;
        default:
          text.insert(at, 1, byte);
      }
    }
    try {
      for (const DependencySentence& sentence : parse(text)) {
        const auto words = static_cast<int64_t>(sentence.words.size());
        const int64_t length = count_code_points(sentence.text).value();
        ASSERT_EQ(sentence.spans.size(), sentence.words.size());
        ASSERT_EQ(sentence.relation.size(), sentence.words.size());
        int64_t before = 0;
        for (int64_t w = 0; w < words; ++w) {
          const auto at = static_cast<size_t>(w);
          const TextSpan& span = sentence.spans[at];
          ASSERT_TRUE(before <= span.begin && span.begin <= span.end && span.end <= length) << text;
          before = span.begin;
          ASSERT_TRUE(sentence.head[at] >= -1 && sentence.head[at] < words) << text;
          ASSERT_NE(sentence.head[at], w);
        }
        ++read;
      }
    } catch (const std::invalid_argument&) {
    }
  }
  EXPECT_GT(read, 1000);
}

TEST(ConlluTest, ReadsFiles) {
  const testing::ScratchFolder folder;
  std::ofstream(folder / "a.conllu", std::ios::binary) << treebank();
  EXPECT_EQ(read_conllu(folder / "a.conllu").size(), 2u);
  EXPECT_THROW(read_conllu(folder / "missing"), std::runtime_error);
  EXPECT_THROW(read_conllu(folder / ""), std::runtime_error);
}

TEST(CodePointsTest, CountsAndRefuses) {
  EXPECT_EQ(count_code_points(""), 0);
  EXPECT_EQ(count_code_points("a\xc3\xab\xe2\x82\xac\xf0\x9f\x98\x80"), 4);
  for (const char* bad :
       {"\x80", "\xc3", "\xc0\xaf", "\xe2\x82", "\xf4\x90\x80\x80", "\xf8", "\xc3z"}) {
    EXPECT_FALSE(count_code_points(bad).has_value()) << bad;
  }
}

}  // namespace
}  // namespace headkit

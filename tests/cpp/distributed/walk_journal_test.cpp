#include "headkit/distributed/walk_journal.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <random>
#include <sstream>
#include <stdexcept>

#include "support/scratch_folder.h"

namespace headkit {
namespace {

std::string content(const std::string& path) {
  std::ostringstream text;
  text << std::ifstream(path, std::ios::binary).rdbuf();
  return text.str();
}

void write(const std::string& path, const std::string& bytes) {
  std::ofstream(path, std::ios::binary | std::ios::trunc) << bytes;
}

std::string entry(int64_t walk, int64_t batch) {
  return std::string(static_cast<size_t>(5 * batch + walk), static_cast<char>('a' + batch));
}

std::string made(const std::string& path) {
  WalkJournal journal(path, "job");
  for (const int64_t walk : {0, 1}) {
    for (int64_t batch = 0; batch < 4; ++batch) journal.add(walk, batch, entry(walk, batch));
  }
  return content(path);
}

// Whatever is there is as it was written; how many entries that are.
int64_t count_right(const WalkJournal& journal) {
  int64_t entries = 0;
  for (const int64_t walk : {0, 1}) {
    for (const int64_t batch : journal.batches(walk)) {
      EXPECT_EQ(journal.read(walk, batch), entry(walk, batch));
      ++entries;
    }
  }
  return entries;
}

TEST(WalkJournalTest, KeepsEntries) {
  const testing::ScratchFolder folder;
  const std::string path = folder / "journal";
  made(path);
  const WalkJournal journal(path, "job");
  EXPECT_EQ(journal.batches(0), (std::vector<int64_t>{0, 1, 2, 3}));
  EXPECT_EQ(journal.batches(2), std::vector<int64_t>());
  EXPECT_EQ(count_right(journal), 8);
  EXPECT_THROW(journal.read(0, 9), std::out_of_range);
}

TEST(WalkJournalTest, CutAnywhereItHoldsWhatCameBefore) {
  const testing::ScratchFolder folder;
  const std::string path = folder / "journal";
  const std::string whole = made(path);
  int64_t most = 0;
  for (size_t length = 0; length <= whole.size(); ++length) {
    write(path, whole.substr(0, length));
    WalkJournal journal(path, "job");
    const int64_t entries = count_right(journal);
    EXPECT_GE(entries, most);
    most = entries;
    journal.add(1, 3, entry(1, 3));
    EXPECT_EQ(count_right(journal), std::min<int64_t>(entries + 1, 8));
  }
  EXPECT_EQ(most, 8);
}

TEST(WalkJournalTest, MutatedBytesNeverComeBackAsEntries) {
  const testing::ScratchFolder folder;
  const std::string path = folder / "journal";
  const std::string whole = made(path);
  std::mt19937_64 random(1);
  for (int64_t i = 0; i < 2000; ++i) {
    std::string bytes = whole;
    for (uint64_t change = 0; change <= random() % 3; ++change) {
      bytes[random() % bytes.size()] = static_cast<char>(random());
    }
    write(path, bytes);
    try {
      count_right(WalkJournal(path, "job"));
    } catch (const std::invalid_argument& error) {
      EXPECT_EQ(std::string(error.what()).find("[journal] expected"), 0U) << error.what();
      EXPECT_EQ(content(path), bytes) << "a file that is no journal of ours stays as it is";
    }
  }
}

TEST(WalkJournalTest, OtherJobsAndOtherFilesAreRefusedAndKept) {
  const testing::ScratchFolder folder;
  const std::string path = folder / "journal";
  const std::string whole = made(path);
  EXPECT_THROW(WalkJournal(path, "another job"), std::invalid_argument);
  EXPECT_EQ(content(path), whole);
  write(path, "my thesis");
  EXPECT_THROW(WalkJournal(path, "job"), std::invalid_argument);
  EXPECT_EQ(content(path), "my thesis");
  EXPECT_THROW(WalkJournal(folder / "nowhere/journal", "job"), std::runtime_error);
}

TEST(WalkJournalTest, OneWriterAtATime) {
  const testing::ScratchFolder folder;
  const WalkJournal journal(folder / "journal", "job");
  EXPECT_THROW(WalkJournal(folder / "journal", "job"), std::runtime_error);
}

}  // namespace
}  // namespace headkit

#include "supervisor/history.hpp"

#include <doctest/doctest.h>

#include <fstream>
#include <nlohmann/json.hpp>

#include "handoff/base/fd.hpp"
#include "sample_record.hpp"
#include "test_folder.hpp"

using namespace liveupdate;
using namespace liveupdate::supervisor;

namespace {

UpdateRecord numbered(size_t number) {
    UpdateRecord r = sample_record();
    r.id = std::to_string(number);
    return r;
}

History opened(const std::string& path) {
    auto history = History::open(path);
    INFO((history ? "" : history.error().message));
    REQUIRE(history.has_value());
    return std::move(*history);
}

} // namespace

TEST_CASE("records are there after a restart, the newest first") {
    const TestFolder folder;
    const std::string path = folder.file("history.jsonl");
    {
        History history = opened(path);
        CHECK(history.newest(10).empty());
        for (size_t i = 0; i < 3; ++i)
            REQUIRE(history.append(numbered(i)).has_value());
    }
    const History history = opened(path);
    CHECK(history.warnings().empty());
    REQUIRE(history.newest(10).size() == 3);
    CHECK(history.newest(2)[0] == numbered(2));
    CHECK(history.newest(2)[1] == numbered(1));
    CHECK(history.newest(2).size() == 2);
}

TEST_CASE("a torn last line is told, cut off, and does not spoil the next record") {
    const TestFolder folder;
    const std::string path = folder.file("history.jsonl");
    {
        History history = opened(path);
        REQUIRE(history.append(numbered(1)).has_value());
        REQUIRE(history.append(numbered(2)).has_value());
    }
    const std::string whole = fd::read_file(path).value();
    for (const size_t cut : {size_t{1}, size_t{2}, size_t{100}}) {
        CAPTURE(cut);
        std::ofstream(path, std::ios::binary) << whole.substr(0, whole.size() - cut);
        History history = opened(path);
        REQUIRE(history.warnings().size() == 1);
        CHECK(history.warnings()[0].find(path + ":2: the last line is torn") == 0);
        REQUIRE(history.append(numbered(3)).has_value());
        const History again = opened(path);
        CHECK(again.warnings().empty());
        REQUIRE(again.newest(9).size() == 2);
        CHECK(again.newest(9)[0] == numbered(3));
        CHECK(again.newest(9)[1] == numbered(1));
    }
}

TEST_CASE("lines that are no record are passed over and told") {
    const TestFolder folder;
    const std::string good = to_json(numbered(1)).dump() + "\n";
    const std::string path = folder.write("history.jsonl", "rubbish\n" + good + "{\"id\":1}\n\n" + good);
    const auto content = read_history(path);
    REQUIRE(content.has_value());
    CHECK(content->records.size() == 2);
    REQUIRE(content->warnings.size() == 3);
    CHECK(content->warnings[0] == path + ":1: line passed over: not JSON");
}

TEST_CASE("the newest thousand are kept and the file does not grow without end") {
    const TestFolder folder;
    const std::string path = folder.file("history.jsonl");
    std::string many;
    for (size_t i = 0; i < 1240; ++i)
        many += to_json(numbered(i)).dump() + "\n";
    folder.write("history.jsonl", many);
    History history = opened(path);
    CHECK(history.newest(5000).size() == kHistoryKept);
    for (size_t i = 1240; i < 1540; ++i)
        REQUIRE(history.append(numbered(i)).has_value());
    CHECK(history.newest(5000).size() == kHistoryKept);
    const std::string text = fd::read_file(path).value();
    CHECK(std::count(text.begin(), text.end(), '\n') <= 1250);
    const History again = opened(path);
    CHECK(again.newest(1)[0] == numbered(1539));
    CHECK(again.newest(5000).back() == numbered(540));
}

TEST_CASE("a history that cannot be opened says where") {
    const TestFolder folder;
    CHECK(History::open(folder.file("no/history.jsonl")).error().message.find("no/history.jsonl") !=
          std::string::npos);
    CHECK(read_history(folder.file("no/history.jsonl")).value().records.empty());
}

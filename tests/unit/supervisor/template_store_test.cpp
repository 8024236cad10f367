#include "supervisor/template_store.hpp"

#include <doctest/doctest.h>

#include <filesystem>

#include "tests/unit/supervisor/test_folder.hpp"

namespace liveupdate::supervisor {
namespace {

namespace fs = std::filesystem;

TEST_CASE("a template is found once it is whole, and never half") {
    const TestFolder folder;
    const TemplateStore store(folder.paths());
    CHECK(store.names()->empty());
    std::string made;
    {
        const auto begun = store.begin("gold");
        REQUIRE(begun);
        made = begun->directory;
        folder.write(fs::relative(made, folder.path()).string() + "/left", "of a crash");
        CHECK(store.names()->empty());
        CHECK(store.open("gold").error().code == ErrorCode::kNotFound);
        CHECK(store.begin("gold").error().code == ErrorCode::kBusy);
    }
    const auto begun = store.begin("gold"); // what a crash has left is gone
    REQUIRE(begun);
    CHECK(fs::is_empty(made));
    REQUIRE(store.publish("gold", "web1", "/etc/liveupdate/vms/web1.toml"));
    CHECK(*store.names() == std::vector<std::string>{"gold"});
    CHECK_FALSE(fs::exists(made));
    const auto again = store.begin("gold");
    REQUIRE_FALSE(again);
    CHECK(again.error().code == ErrorCode::kRefused);
    CHECK(again.error().message.find("--name") != std::string::npos);
    // Without a saved guest in it it is none.
    CHECK_FALSE(store.open("gold"));
    REQUIRE(store.remove("gold"));
    CHECK(store.names()->empty());
    CHECK(fs::is_empty(folder.paths().templates()));
    CHECK(store.remove("gold").error().code == ErrorCode::kNotFound);
}

TEST_CASE("a whole guest that a crash has left is not thrown away") {
    const TestFolder folder;
    const TemplateStore store(folder.paths());
    const std::string made = store.begin("gold")->directory;
    folder.write(fs::relative(made, folder.path()).string() + "/guest.save", "a guest");
    const auto again = store.begin("gold");
    REQUIRE_FALSE(again);
    CHECK(again.error().code == ErrorCode::kRefused);
    CHECK(again.error().message.find("liveupdate restore " + made) != std::string::npos);
    CHECK(fs::exists(made + "/guest.save"));
}

TEST_CASE("who comes second with a name is refused, and the first one's template stays") {
    const TestFolder folder;
    const TemplateStore store(folder.paths());
    REQUIRE(store.begin("gold"));
    fs::create_directories(folder.paths().templates() + "/gold"); // somebody else's, made meanwhile
    const auto second = store.publish("gold", "web1", "/v/web1.toml");
    REQUIRE_FALSE(second);
    CHECK(second.error().code == ErrorCode::kRefused);
    CHECK(fs::is_empty(folder.paths().templates() + "/gold"));
    store.give_up("gold");
    CHECK(*store.names() == std::vector<std::string>{"gold"});
}

TEST_CASE("a name that is no template's is refused before it becomes a path") {
    const TestFolder folder;
    const TemplateStore store(folder.paths());
    for (const char* name : {"", "../x", ".hidden", "A", "a/b"}) {
        CAPTURE(name);
        CHECK(store.begin(name).error().code == ErrorCode::kInvalid);
        CHECK(store.open(name).error().code == ErrorCode::kInvalid);
        CHECK(store.remove(name).error().code == ErrorCode::kInvalid);
    }
}

TEST_CASE("a template whose description is damaged is refused in words") {
    const TestFolder folder;
    const TemplateStore store(folder.paths());
    REQUIRE(store.begin("gold"));
    REQUIRE(store.publish("gold", "web1", "/v/web1.toml"));
    const std::string about = folder.paths().templates() + "/gold/template.json";
    fs::permissions(about, fs::perms::owner_all);
    for (const char* text : {"", "{", "[]", "{\"vm_file\": 3}"}) {
        folder.write(fs::relative(about, folder.path()), text);
        const auto opened = store.open("gold");
        REQUIRE_FALSE(opened);
        CHECK(opened.error().code == ErrorCode::kRefused);
        CHECK(opened.error().message.find("make the template anew") != std::string::npos);
    }
}

} // namespace
} // namespace liveupdate::supervisor

// A program that starts and says nothing.
#include <unistd.h>

int main() {
    for (;;)
        ::pause();
}

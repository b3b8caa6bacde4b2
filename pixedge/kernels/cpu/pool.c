#if defined(__linux__)
#define _GNU_SOURCE
#include <sched.h>
#endif
#include "pool.h"

#include <pthread.h>
#include <signal.h>
#include <stddef.h>
#include <time.h>
#include <unistd.h>

#define MOST_THREADS PIXEDGE_MOST_THREADS
/* How long a thread that has nothing to do looks for work before it sleeps: longer than it takes to come from
   one layer's call to the next, so that a token wakes each thread once. */
#define SPIN_NANOSECONDS 200000L

static pthread_mutex_t turn = PTHREAD_MUTEX_INITIALIZER; /* held by the caller of a task */
static pthread_mutex_t sleep_mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t sleep_condition = PTHREAD_COND_INITIALIZER;
static pthread_once_t once = PTHREAD_ONCE_INIT;

static atomic_int wanted = 0; /* threads of the next task; 0: one a core */
static int asked = 1;         /* for how many threads the pool was made; under `turn`, as all below */
static int team = 1;          /* how many it has, with the caller: fewer where the system gave no more */
static int spins = 0;         /* whether a waiting thread spins: not where there are more threads than cores */
static pthread_t workers[MOST_THREADS];
static pixedge_task current_task; /* NULL: the workers shall end */
static void *current_context;

static atomic_uint generation = 0; /* counts tasks; a change wakes the workers */
static atomic_uint completed = 0;  /* the last task that all workers have finished */
static atomic_int running = 0;     /* workers that have not finished the task */
static atomic_uint phase = 0;      /* counts barriers */
static atomic_int arrived = 0;     /* threads that wait at the barrier */
static atomic_int sleepers = 0;

static int cores(void) {
#if defined(__linux__)
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) == 0) {
        return CPU_COUNT(&set);
    }
#endif
    long found = sysconf(_SC_NPROCESSORS_ONLN);
    return found < 1 ? 1 : (int)found;
}

static void pause_briefly(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

static long nanoseconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000000000L + now.tv_nsec;
}

/* Wait until *word is no longer `old`: spin for a while, then sleep. A waker changes the word first and looks
   for sleepers second; a sleeper counts itself first and looks at the word second. So none is missed. */
static void wait_while(atomic_uint *word, unsigned old) {
    long end = 0;
    for (int turns = 1; spins && atomic_load_explicit(word, memory_order_acquire) == old; turns++) {
        pause_briefly();
        if (turns % 64 == 0) {
            long now = nanoseconds();
            if (end == 0) {
                end = now + SPIN_NANOSECONDS;
            } else if (now > end) {
                break;
            }
        }
    }
    if (atomic_load(word) != old) {
        return;
    }
    pthread_mutex_lock(&sleep_mutex);
    atomic_fetch_add(&sleepers, 1);
    while (atomic_load(word) == old) {
        pthread_cond_wait(&sleep_condition, &sleep_mutex);
    }
    atomic_fetch_sub(&sleepers, 1);
    pthread_mutex_unlock(&sleep_mutex);
}

static void change(atomic_uint *word, unsigned value) {
    atomic_store(word, value);
    if (atomic_load(&sleepers) > 0) {
        pthread_mutex_lock(&sleep_mutex);
        pthread_cond_broadcast(&sleep_condition);
        pthread_mutex_unlock(&sleep_mutex);
    }
}

void pixedge_barrier(void) {
    if (team == 1) {
        return;
    }
    unsigned now = atomic_load(&phase);
    if (atomic_fetch_add(&arrived, 1) == team - 1) {
        atomic_store(&arrived, 0);
        change(&phase, now + 1);
    } else {
        wait_while(&phase, now);
    }
}

int pixedge_next(atomic_int *counter) {
    return atomic_fetch_add_explicit(counter, 1, memory_order_relaxed);
}

int64_t pixedge_next_in_run(struct pixedge_runs *runs, int64_t items, int thread, int threads, int *tried) {
    for (; *tried < threads; ++*tried) {
        const int owner = (thread + *tried) % threads;
        const int64_t item = items * owner / threads + pixedge_next(&runs->taken[owner]);
        if (item < items * (owner + 1) / threads) {
            return item;
        }
    }
    return -1;
}

struct birth {
    int thread;
    unsigned generation; /* the task that was current then: a thread may begin to run only after the next */
};
static struct birth births[MOST_THREADS];

static void *work(void *argument) {
    struct birth self = *(struct birth *)argument;
    for (unsigned seen = self.generation;; seen++) {
        wait_while(&generation, seen);
        pixedge_task task = current_task;
        if (task) {
            task(current_context, self.thread, team);
        }
        if (atomic_fetch_sub(&running, 1) == 1) {
            change(&completed, seen + 1);
        }
        if (!task) {
            return NULL;
        }
    }
}

static void run(pixedge_task task, void *context) {
    unsigned before = atomic_load(&generation);
    current_task = task;
    current_context = context;
    if (team > 1) {
        atomic_store(&running, team - 1);
        change(&generation, before + 1);
    }
    if (task) {
        task(context, 0, team);
    }
    if (team > 1) {
        wait_while(&completed, before);
    }
}

static void resize(int threads) {
    run(NULL, NULL);
    for (int i = 1; i < team; i++) {
        pthread_join(workers[i], NULL);
    }
    asked = threads;
    spins = threads <= cores();
    int born = 1;
    sigset_t all, old; /* signals are for the program's own threads */
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    for (; born < threads; born++) {
        births[born] = (struct birth){born, atomic_load(&generation)};
        if (pthread_create(&workers[born], NULL, work, &births[born])) {
            break;
        }
    }
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    team = born; /* no worker reads it before its first task */
}

/* The child of a fork has one thread, and locks in whatever state they were. */
static void forget_workers(void) {
    pthread_mutex_init(&turn, NULL);
    pthread_mutex_init(&sleep_mutex, NULL);
    pthread_cond_init(&sleep_condition, NULL);
    team = asked = 1;
    atomic_store(&running, 0);
    atomic_store(&arrived, 0);
    atomic_store(&sleepers, 0);
    atomic_store(&completed, atomic_load(&generation));
}

static void watch_forks(void) {
    pthread_atfork(NULL, NULL, forget_workers);
}

int pixedge_threads(void) {
    int threads = atomic_load(&wanted);
    if (threads < 1) {
        threads = cores();
    }
    return threads < MOST_THREADS ? threads : MOST_THREADS;
}

void pixedge_set_threads(int threads) {
    atomic_store(&wanted, threads < 0 ? 0 : threads);
}

void pixedge_parallel(pixedge_task task, void *context) {
    pthread_once(&once, watch_forks);
    pthread_mutex_lock(&turn);
    int threads = pixedge_threads();
    if (threads != asked) {
        resize(threads);
    }
    run(task, context);
    pthread_mutex_unlock(&turn);
}

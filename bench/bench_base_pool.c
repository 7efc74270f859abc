/* SPDX-License-Identifier: MIT */
/*
 * bench_base_pool.c - does a lane share one queue, or do its threads steal from each other?
 *
 * The lanes of src/base/pool.c share one queue under one lock. Beside them stands a prototype
 * that steals: each thread has a deque with a lock of its own, takes its newest task, and
 * without one takes the oldest of another thread. Both wake threads by the same rule (one at
 * a time, the last to fall asleep first), so what differs is the queue. A batch that comes
 * from outside is dealt out over the deques in equal parts.
 *
 * The cases, each with the question it answers:
 *
 *   batch32,work=1us     is one lock a bottleneck when tasks are short? (limit: wake-ups)
 *   batch32,work=read    the same for system calls of about 10 us: pread of 192 KiB, cached
 *   window32,work=block  32 in flight at 32 threads, each blocked for about 100 us as in a
 *                        device: what the threads backend does (limit: context switches)
 *   spawn,work=1us       tasks that spawn two tasks each, 4095 a tree: where stealing should
 *                        shine, as nobody needs to meet
 *
 *   bench_base_pool [PAIRS] [MILLISECONDS]     7 pairs of 500 ms; A B A B
 *
 * One JSON line a case and contender, then one with the median of the pairs' ratios.
 */
#include <inttypes.h>
#include <linux/futex.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <time.h>
#include <unistd.h>

#include "base/pool.h"

#define BATCH       32u
#define TREE_LEVELS 12u
#define READ_SIZE   ((size_t)192 * 1024)
#define MAX_PAIRS   64u

/* --- time and sleep ----------------------------------------------------------------------- */

static uint64_t now_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * WI_SEC_NS + (uint64_t)now.tv_nsec;
}

static uint64_t cpu_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
    return (uint64_t)now.tv_sec * WI_SEC_NS + (uint64_t)now.tv_nsec;
}

static void futex_wait(_Atomic uint32_t *word, uint32_t value)
{
    syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, value, NULL, NULL, 0);
}

static void futex_wake(_Atomic uint32_t *word)
{
    syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
}

/* --- the prototype that steals -------------------------------------------------------------- */

#define DEQUE_ROOM 8192u /* a power of two, more than a case ever has waiting */

struct thief {
    struct stealing *pool;
    pthread_t thread;
    pthread_mutex_t mu;     /* guards the deque */
    struct wi_task **tasks; /* oldest at `top` */
    _Atomic uint32_t top;   /* atomic to be looked at without the lock */
    _Atomic uint32_t bottom;
    struct thief *next_asleep; /* guarded by pool->sleep_mu */
    _Atomic uint32_t wake;
} __attribute__((aligned(WI_CACHE_LINE)));

struct stealing {
    uint32_t count;
    struct thief *thieves;
    uint32_t next_deal; /* the submitter's */
    pthread_mutex_t sleep_mu;
    struct thief *asleep;
    _Atomic uint32_t asleep_count;
    _Atomic bool helper_coming;
    _Atomic bool stopping;
};

static _Thread_local struct thief *own_thief;

static bool looks_empty(struct thief *thief)
{
    return atomic_load(&thief->top) == atomic_load(&thief->bottom);
}

static void push_own(struct thief *thief, struct wi_task *task)
{
    uint32_t bottom;

    pthread_mutex_lock(&thief->mu);
    bottom = atomic_load(&thief->bottom);
    WEIR_ASSERT(bottom - atomic_load(&thief->top) < DEQUE_ROOM);
    thief->tasks[bottom % DEQUE_ROOM] = task;
    atomic_store(&thief->bottom, bottom + 1);
    pthread_mutex_unlock(&thief->mu);
}

static struct wi_task *take(struct thief *from, bool newest)
{
    struct wi_task *task = NULL;
    uint32_t top;
    uint32_t bottom;

    if (looks_empty(from))
        return NULL;
    pthread_mutex_lock(&from->mu);
    top = atomic_load(&from->top);
    bottom = atomic_load(&from->bottom);
    if (top != bottom && newest) {
        task = from->tasks[(bottom - 1) % DEQUE_ROOM];
        atomic_store(&from->bottom, bottom - 1);
    } else if (top != bottom) {
        task = from->tasks[top % DEQUE_ROOM];
        atomic_store(&from->top, top + 1);
    }
    pthread_mutex_unlock(&from->mu);
    return task;
}

static struct wi_task *find_task(struct thief *thief)
{
    struct stealing *pool = thief->pool;
    uint32_t own = (uint32_t)(thief - pool->thieves);
    struct wi_task *task = take(thief, true);

    for (uint32_t i = 1; !task && i < pool->count; i++)
        task = take(&pool->thieves[(own + i) % pool->count], false);
    return task;
}

/* As in the pool: one helper on its way at most. */
static void call_helper(struct stealing *pool)
{
    struct thief *helper;

    if (atomic_load(&pool->asleep_count) == 0 || atomic_exchange(&pool->helper_coming, true))
        return;
    pthread_mutex_lock(&pool->sleep_mu);
    helper = pool->asleep;
    if (helper) {
        pool->asleep = helper->next_asleep;
        atomic_fetch_sub(&pool->asleep_count, 1);
    } else {
        atomic_store(&pool->helper_coming, false);
    }
    pthread_mutex_unlock(&pool->sleep_mu);
    if (helper) {
        atomic_store(&helper->wake, 1);
        futex_wake(&helper->wake);
    }
}

static bool any_task(struct stealing *pool)
{
    for (uint32_t i = 0; i < pool->count; i++)
        if (!looks_empty(&pool->thieves[i]))
            return true;
    return false;
}

static void fall_asleep(struct thief *thief)
{
    struct stealing *pool = thief->pool;

    pthread_mutex_lock(&pool->sleep_mu);
    thief->next_asleep = pool->asleep;
    pool->asleep = thief;
    atomic_fetch_add(&pool->asleep_count, 1);
    pthread_mutex_unlock(&pool->sleep_mu);

    /* What was pushed before we were on the stack had nobody to wake. */
    if (any_task(pool))
        call_helper(pool);
    while (atomic_load(&thief->wake) == 0)
        futex_wait(&thief->wake, 0);
    atomic_store(&thief->wake, 0);
    atomic_store(&pool->helper_coming, false);
}

static void *thief_main(void *arg)
{
    struct thief *thief = arg;
    struct stealing *pool = thief->pool;

    own_thief = thief;
    while (!atomic_load(&pool->stopping)) {
        struct wi_task *task = find_task(thief);

        if (!task) {
            fall_asleep(thief);
            continue;
        }
        if (any_task(pool))
            call_helper(pool);
        task->run(task);
    }
    return NULL;
}

static void *stealing_create(uint32_t threads)
{
    struct stealing *pool = calloc(1, sizeof(*pool));

    WEIR_ASSERT(pool);
    pool->count = threads;
    pool->thieves = aligned_alloc(WI_CACHE_LINE, threads * sizeof(*pool->thieves));
    WEIR_ASSERT(pool->thieves);
    memset(pool->thieves, 0, threads * sizeof(*pool->thieves));
    pthread_mutex_init(&pool->sleep_mu, NULL);
    for (uint32_t i = 0; i < threads; i++) {
        struct thief *thief = &pool->thieves[i];

        thief->pool = pool;
        /* NOLINTNEXTLINE(bugprone-sizeof-expression): pointers are what it holds. */
        thief->tasks = calloc(DEQUE_ROOM, sizeof(*thief->tasks));
        WEIR_ASSERT(thief->tasks);
        pthread_mutex_init(&thief->mu, NULL);
    }
    for (uint32_t i = 0; i < threads; i++)
        WEIR_ASSERT(
            pthread_create(&pool->thieves[i].thread, NULL, thief_main, &pool->thieves[i]) == 0);
    return pool;
}

static void stealing_submit(void *context, struct wi_task *first, struct wi_task *last,
                            uint32_t count)
{
    struct stealing *pool = context;
    uint32_t part = (count + pool->count - 1) / pool->count;
    uint32_t dealt = 0;

    (void)last;
    for (struct wi_task *task = first; dealt < count; dealt++) {
        struct wi_task *next = task->next;

        if (own_thief) {
            push_own(own_thief, task);
        } else {
            if (dealt % part == 0)
                pool->next_deal = (pool->next_deal + 1) % pool->count;
            push_own(&pool->thieves[pool->next_deal], task);
        }
        task = next;
    }
    call_helper(pool);
}

static void stealing_destroy(void *context)
{
    struct stealing *pool = context;

    atomic_store(&pool->stopping, true);
    for (uint32_t i = 0; i < pool->count; i++) {
        atomic_store(&pool->thieves[i].wake, 1);
        futex_wake(&pool->thieves[i].wake);
    }
    for (uint32_t i = 0; i < pool->count; i++) {
        pthread_join(pool->thieves[i].thread, NULL);
        free(pool->thieves[i].tasks);
    }
    free(pool->thieves);
    free(pool);
}

/* --- the two contenders -------------------------------------------------------------------- */

static void *shared_create(uint32_t threads)
{
    struct wi_pool_options options = { .threads = { threads, 1, threads } };
    struct wi_pool *pool;

    WEIR_ASSERT(wi_pool_create(&options, &pool) == 0);
    return pool;
}

static void shared_submit(void *context, struct wi_task *first, struct wi_task *last,
                          uint32_t count)
{
    wi_pool_submit(context, WI_LANE_IO, first, last, count);
}

static void shared_destroy(void *context)
{
    wi_pool_destroy(context);
}

struct contender {
    const char *name;
    void *(*create)(uint32_t threads);
    void (*submit)(void *pool, struct wi_task *first, struct wi_task *last, uint32_t count);
    void (*destroy)(void *pool);
};

static const struct contender contenders[2] = {
    { "shared", shared_create, shared_submit, shared_destroy },
    { "stealing", stealing_create, stealing_submit, stealing_destroy },
};

/* --- work ---------------------------------------------------------------------------------- */

struct run {
    const struct contender *contender;
    void *pool;
    int fd;
    uint64_t loops_per_us;
    void (*work)(struct run *run);
    bool refill;           /* the submitter waits for some, not for all */
    _Atomic uint32_t done; /* since the submitter looked */
    _Atomic uint32_t want; /* how many it waits for */
    _Atomic uint32_t wake;
    _Atomic uint32_t free_bits; /* which of the tasks are done; refill only */
};

struct item {
    struct wi_task task;
    struct run *run;
    uint32_t index; /* in its batch, or the node of its tree */
};

static void spin(uint64_t loops)
{
    for (uint64_t i = 0; i < loops; i++)
        __asm__ volatile("" ::: "memory");
}

static void work_1us(struct run *run)
{
    spin(run->loops_per_us);
}

static void work_read(struct run *run)
{
    static _Thread_local char buf[READ_SIZE];

    WEIR_ASSERT(pread(run->fd, buf, sizeof(buf), 0) == (ssize_t)sizeof(buf));
}

/* Real pages: a hole would be read from the one page of zeros, which stays in the cache. */
static void fill_file(int fd)
{
    static char page[4096];

    for (size_t done = 0; done < READ_SIZE; done += sizeof(page))
        WEIR_ASSERT(write(fd, page, sizeof(page)) == (ssize_t)sizeof(page));
}

static void work_block(struct run *run)
{
    struct timespec pause = { .tv_nsec = 100 * 1000 };

    (void)run;
    nanosleep(&pause, NULL);
}

static void tell_done(struct run *run)
{
    if (atomic_fetch_add(&run->done, 1) + 1 == atomic_load(&run->want)) {
        atomic_store(&run->wake, 1);
        futex_wake(&run->wake);
    }
}

static void wait_done(struct run *run)
{
    while (atomic_load(&run->wake) == 0)
        futex_wait(&run->wake, 0);
    atomic_store(&run->wake, 0);
}

static void run_item(struct wi_task *task)
{
    struct item *item = WI_CONTAINER_OF(task, struct item, task);
    struct run *run = item->run;
    uint32_t index = item->index;

    run->work(run);
    if (run->refill) {
        /* The first to finish wakes the submitter, as an inbox does. */
        if (atomic_fetch_or(&run->free_bits, 1u << index) == 0) {
            atomic_store(&run->wake, 1);
            futex_wake(&run->wake);
        }
    } else {
        tell_done(run);
    }
}

static void submit_bits(struct run *run, struct item *items, uint32_t bits)
{
    struct wi_task *first = NULL;
    struct wi_task *last = NULL;
    uint32_t count = 0;

    for (uint32_t i = 0; i < BATCH; i++) {
        if (!(bits & 1u << i))
            continue;
        items[i].task.next = NULL;
        if (last)
            last->next = &items[i].task;
        else
            first = &items[i].task;
        last = &items[i].task;
        count++;
    }
    run->contender->submit(run->pool, first, last, count);
}

static uint64_t run_batches(struct run *run, uint64_t until_ns)
{
    struct item items[BATCH];
    uint64_t tasks = 0;

    for (uint32_t i = 0; i < BATCH; i++)
        items[i] = (struct item){ .task.run = run_item, .run = run, .index = i };
    while (now_ns() < until_ns) {
        atomic_store(&run->done, 0);
        atomic_store(&run->want, BATCH);
        submit_bits(run, items, UINT32_MAX);
        wait_done(run);
        tasks += BATCH;
    }
    return tasks;
}

static uint64_t run_window(struct run *run, uint64_t until_ns)
{
    struct item items[BATCH];
    uint32_t flying = UINT32_MAX;
    uint64_t tasks = 0;

    for (uint32_t i = 0; i < BATCH; i++)
        items[i] = (struct item){ .task.run = run_item, .run = run, .index = i };
    atomic_store(&run->free_bits, 0);
    submit_bits(run, items, UINT32_MAX);
    while (flying) {
        uint32_t bits;

        wait_done(run);
        bits = atomic_exchange(&run->free_bits, 0);
        tasks += (uint32_t)__builtin_popcount(bits);
        if (now_ns() >= until_ns)
            flying &= ~bits;
        else if (bits)
            submit_bits(run, items, bits);
    }
    return tasks;
}

/* --- trees ---------------------------------------------------------------------------------- */

#define TREE_SIZE ((1u << TREE_LEVELS) - 1)

static struct item tree[TREE_SIZE];

static void run_node(struct wi_task *task)
{
    struct item *item = WI_CONTAINER_OF(task, struct item, task);
    struct run *run = item->run;
    uint32_t left = item->index * 2 + 1;

    run->work(run);
    if (left < TREE_SIZE) {
        tree[left].task.next = &tree[left + 1].task;
        run->contender->submit(run->pool, &tree[left].task, &tree[left + 1].task, 2);
    }
    tell_done(run);
}

static uint64_t run_trees(struct run *run, uint64_t until_ns)
{
    uint64_t tasks = 0;

    for (uint32_t i = 0; i < TREE_SIZE; i++)
        tree[i] = (struct item){ .task.run = run_node, .run = run, .index = i };
    while (now_ns() < until_ns) {
        atomic_store(&run->done, 0);
        atomic_store(&run->want, TREE_SIZE);
        run->contender->submit(run->pool, &tree[0].task, &tree[0].task, 1);
        wait_done(run);
        tasks += TREE_SIZE;
    }
    return tasks;
}

/* --- cases ---------------------------------------------------------------------------------- */

struct bench_case {
    const char *name;
    uint32_t threads; /* 0: as many as processors */
    bool refill;
    void (*work)(struct run *run);
    uint64_t (*go)(struct run *run, uint64_t until_ns);
};

static const struct bench_case cases[] = {
    { "batch32,work=1us", 0, false, work_1us, run_batches },
    { "batch32,work=read", 0, false, work_read, run_batches },
    { "window32,work=block", BATCH, true, work_block, run_window },
    { "spawn,work=1us", 0, false, work_1us, run_trees },
};

struct sample {
    double per_second;
    double cpu_us; /* a task */
    double switches;
};

static uint64_t loops_of_1us(void)
{
    uint64_t loops = 20 * 1000 * 1000;
    uint64_t best_ns = UINT64_MAX;

    for (int i = 0; i < 5; i++) {
        uint64_t start_ns = now_ns();

        spin(loops);
        best_ns = wi_min_u64(best_ns, now_ns() - start_ns);
    }
    return wi_max_u64(loops * 1000 / best_ns, 1);
}

static uint64_t switches_now(void)
{
    struct rusage usage;

    getrusage(RUSAGE_SELF, &usage);
    return (uint64_t)usage.ru_nvcsw + (uint64_t)usage.ru_nivcsw;
}

static struct sample measure(const struct bench_case *bench, const struct contender *contender,
                             struct run *run, uint32_t threads, uint64_t length_ns)
{
    uint64_t start_ns;
    uint64_t start_cpu_ns;
    uint64_t start_switches;
    uint64_t tasks;
    double seconds;

    run->contender = contender;
    run->work = bench->work;
    run->refill = bench->refill;
    run->pool = contender->create(threads);
    bench->go(run, now_ns() + length_ns / 10); /* its threads are up */
    start_cpu_ns = cpu_ns();
    start_switches = switches_now();
    start_ns = now_ns();
    tasks = bench->go(run, start_ns + length_ns);
    seconds = (double)(now_ns() - start_ns) / 1e9;
    start_cpu_ns = cpu_ns() - start_cpu_ns;
    start_switches = switches_now() - start_switches;
    contender->destroy(run->pool);
    return (struct sample){
        .per_second = (double)tasks / seconds,
        .cpu_us = (double)start_cpu_ns / 1e3 / (double)tasks,
        .switches = (double)start_switches / (double)tasks,
    };
}

static int compare(const void *a, const void *b)
{
    double left = *(const double *)a;
    double right = *(const double *)b;

    return (left > right) - (left < right);
}

static double median(double *values, uint32_t count)
{
    qsort(values, count, sizeof(*values), compare);
    return count % 2 ? values[count / 2] : (values[count / 2 - 1] + values[count / 2]) / 2;
}

static void report(const char *name, const char *pool, const struct sample *samples,
                   uint32_t pairs, uint32_t threads)
{
    double speed[MAX_PAIRS];
    double cpu[MAX_PAIRS];
    double switches[MAX_PAIRS];
    double middle;
    struct utsname machine;

    for (uint32_t i = 0; i < pairs; i++) {
        speed[i] = samples[i].per_second;
        cpu[i] = samples[i].cpu_us;
        switches[i] = samples[i].switches;
    }
    uname(&machine);
    middle = median(speed, pairs); /* sorts */
    printf("{\"case\":\"base/pool/%s,pool=%s\",\"unit\":\"tasks/s\",\"min\":%.0f,"
           "\"median\":%.0f,\"max\":%.0f,\"repeats\":%u,\"threads\":%u,"
           "\"cpu_us_per_task\":%.2f,\"switches_per_task\":%.3f,"
           "\"machine\":\"%s %s, %ld processors\"}\n",
           name, pool, speed[0], middle, speed[pairs - 1], pairs, threads, median(cpu, pairs),
           median(switches, pairs), machine.release, machine.machine,
           sysconf(_SC_NPROCESSORS_ONLN));
}

static uint32_t argument(int argc, char **argv, int index, uint32_t normal)
{
    return argc > index ? (uint32_t)strtoul(argv[index], NULL, 10) : normal;
}

int main(int argc, char **argv)
{
    static struct sample samples[2][MAX_PAIRS];
    uint32_t pairs = argument(argc, argv, 1, 7);
    uint64_t length_ns = (uint64_t)argument(argc, argv, 2, 500) * WI_MSEC_NS;
    struct run run = { .fd = memfd_create("bench", MFD_CLOEXEC) };

    if (pairs < 1 || pairs > MAX_PAIRS || length_ns == 0) {
        fprintf(stderr, "usage: bench_base_pool [PAIRS, at most %u] [MILLISECONDS]\n",
                MAX_PAIRS);
        return 2;
    }
    fill_file(run.fd);
    run.loops_per_us = loops_of_1us();
    for (size_t c = 0; c < WI_ARRAY_LEN(cases); c++) {
        uint32_t threads = cases[c].threads;
        double ratio[MAX_PAIRS];

        if (threads == 0)
            threads = (uint32_t)wi_max_u64((uint64_t)sysconf(_SC_NPROCESSORS_ONLN), 2);
        for (uint32_t i = 0; i < pairs; i++) {
            for (size_t k = 0; k < 2; k++)
                samples[k][i] = measure(&cases[c], &contenders[k], &run, threads, length_ns);
            ratio[i] = samples[0][i].per_second / samples[1][i].per_second;
        }
        for (size_t k = 0; k < 2; k++)
            report(cases[c].name, contenders[k].name, samples[k], pairs, threads);
        printf("{\"case\":\"base/pool/%s\",\"unit\":\"shared/stealing\",\"median\":%.3f}\n",
               cases[c].name, median(ratio, pairs));
    }
    return 0;
}

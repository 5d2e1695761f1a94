package javafx.application

/** Runs at once what JavaFX would run in its own thread. */
class Platform {

    static void runLater(Runnable work) {
        work.run()
    }
}
